"""Reads files of repositories of the Hugging Face hub, from its cache or from its host, which must answer within 8 s."""

import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import urlsplit

from waver.tools.errors import WaverError
from waver.tools.files import read_json
from waver.tools.network import call_within

HUB = "hf-hub:"
"""Prefix of the names of repositories, as in open_clip."""
LIMIT_S = 8.0
"""Time limit for the answer of a host, including the resolution of its name; seconds."""


class HubError(WaverError):
    """A file of a repository, or of its copy in a folder, cannot be read."""


def is_downloaded(place: object) -> TypeGuard[str]:
    """Returns whether a setting names a repository or an absolute path, and not a model or a pretrained tag.

    A name must not be read as a path: the working folder may hold the configuration of another model.
    """
    return isinstance(place, str) and (place.startswith(HUB) or Path(place).expanduser().is_absolute())


def read_beside(place: str, name: str) -> dict[str, Any] | None:
    """Returns the JSON object in a file beside downloaded weights; None if there is no such file, or it holds no object.

    Args:
        place: `hf-hub:owner/name`, a folder, or a file in it.
        name: name of the file, such as config.json.

    Raises:
        HubError: if the hub does not answer, or the file is damaged.
    """
    if place.startswith(HUB):
        path = _download(place, name)
    else:
        weights = Path(place).expanduser()
        path = (weights if weights.is_dir() else weights.parent) / name
    if path is None or not path.is_file():
        return None
    try:
        described = read_json(path)
    except ValueError as error:
        raise HubError(f"{path} is not JSON ({error}): download it again") from None
    return described if isinstance(described, dict) else None


def repository_of(place: str) -> str:
    """Returns the name of the repository that `hf-hub:owner/name` means.

    Raises:
        HubError: if this is no name of a repository.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repository = place.removeprefix(HUB)
    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise HubError(f"{place} names no repository of the hub: write hf-hub:owner/name") from None
    return repository


def _download(place: str, name: str) -> Path | None:
    """Returns a file of a repository, after a download unless the cache has it; None if the repository has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository = repository_of(place)
    if cached := find_cached(repository, name):
        return cached
    if problem := hub_problem():
        raise HubError(_unreachable(place, name, problem))
    try:
        return Path(hf_hub_download(repository, name))
    except LocalEntryNotFoundError as error:
        raise HubError(_unreachable(place, name, str(error))) from error
    except EntryNotFoundError:
        return None
    except Exception as error:  # the network and the hub raise many kinds, with one remedy for the user
        raise HubError(_unreachable(place, name, str(error))) from error


def _unreachable(place: str, name: str, reason: str) -> str:
    return (
        f"{place}: its {name} was not downloaded before, and the download fails ({next(iter(reason.splitlines()), '')}): "
        "download the repository on a machine with network, copy its folder here, and name the folder instead"
    )


def find_cached(repository: str, *names: str) -> Path | None:
    """Returns the first of the named files of a repository that is in the cache; None if none is."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repository, name) for name in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def hub_problem() -> str:
    """Returns why the hub does not answer; empty if it does. Takes 8 s at most."""
    from huggingface_hub import constants

    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else host_problem(constants.ENDPOINT)


def host_problem(url: str) -> str:
    """Returns why the host of a URL does not answer; empty if it does. Takes 8 s at most."""
    try:
        call_within(LIMIT_S, _ask, url)
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        return f"{urlsplit(url).hostname} does not answer ({reason})"
    return ""


def _ask(url: str) -> None:
    """Raises OSError if no server answers. Any answer counts, also with a certificate that only the hub's client accepts."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=LIMIT_S).close()
    except urllib.error.URLError as error:
        if not isinstance(error, urllib.error.HTTPError) and not isinstance(error.reason, ssl.SSLError):
            raise
