"""Downloads weights, or finds them in caches; their hosts must answer within 8 seconds."""

import os
import zipfile
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import open_clip
from huggingface_hub import constants
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

from waver.model.errors import BackboneError
from waver.model.pretrained.weight_files import INDEX, SNAPSHOT_NAMES, files_of, parts_of, snapshot_name
from waver.tools.hub import HubError, host_problem, hub_problem, repository_of

_CONFIGS = ("config.json", "open_clip_config.json")
"""Files of a snapshot that describe the model."""


def hub_entry(weights: str) -> dict[str, Any]:
    """Returns the entry of a repository of the hub, in the form of open_clip's entries of pretrained tags.

    Args:
        weights: `hf-hub:owner/name`.

    Raises:
        BackboneError: if this is no name of a repository.
    """
    try:
        repository = repository_of(weights)
    except HubError as error:
        raise BackboneError(f"model.weights: {error}") from None
    return {"hf_hub": f"{repository}/", "snapshot": repository}


def cached_weights(entry: dict[str, Any]) -> Path | None:
    """Returns the file of an entry if it was downloaded before, else None.

    Args:
        entry: open_clip's entry of a pretrained tag, or that of a repository, see `hub_entry`.

    Returns:
        The file; for a snapshot in parts, their index, if all parts are there.
    """
    if not entry.get("hf_hub"):
        path = Path("~/.cache/clip", Path(urlsplit(entry["url"]).path).name).expanduser()
        return path if zipfile.is_zipfile(path) else None  # an archive that was cut off has no directory at its end
    owner, names = _files_on_hub(entry)
    found = (huggingface_hub.try_to_load_from_cache(owner, name) for name in names)
    paths = (Path(path) for path in found if isinstance(path, str))
    return next((path for path in paths if not path.name.endswith(INDEX) or _has_all_parts(path)), None)


def weights_url(entry: dict[str, Any]) -> str:
    """Returns the address of the file of an entry, or of its repository if the name of the file is not known."""
    if not entry.get("hf_hub"):
        return entry["url"]
    owner, names = _files_on_hub(entry)
    return f"{constants.ENDPOINT}/{owner}" + ("" if "snapshot" in entry else f"/resolve/main/{names[0]}")


def entry_problem(entry: dict[str, Any]) -> str:
    """Returns why the host of an entry does not answer; empty if it does. Takes 8 s at most."""
    return hub_problem() if entry.get("hf_hub") else host_problem(entry["url"])


def download(entry: dict[str, Any]) -> Path:
    """Downloads the file of an entry into the cache; for a repository, also the configuration of its model.

    Raises:
        Exception: of many kinds, by open_clip and the hub's client, if the download fails.
    """
    if "snapshot" not in entry:
        return Path(open_clip.download_pretrained(entry))
    fetch = partial(huggingface_hub.hf_hub_download, entry["snapshot"])
    present = huggingface_hub.HfApi().list_repo_files(entry["snapshot"])
    name = snapshot_name(present)
    if name is None:
        raise FileNotFoundError(f"it has none of {', '.join(SNAPSHOT_NAMES)}")
    for config in _CONFIGS:
        if config in present:
            fetch(config)
    path = Path(fetch(name))
    for part in files_of(path):
        fetch(part.name)
    return path


def _files_on_hub(entry: dict[str, Any]) -> tuple[str, list[str]]:
    """Returns the repository, and the possible names of the file, in the order of the search."""
    if "snapshot" in entry:
        return entry["snapshot"], list(SNAPSHOT_NAMES)
    owner, name = os.path.split(entry["hf_hub"])
    if not name:
        return owner, [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    path = Path(name)
    return owner, [f"{path.stem}.safetensors", name] if path.suffix in (".bin", ".pth") else [name]


def _has_all_parts(index: Path) -> bool:
    try:
        return all(part.is_file() for part in parts_of(index))
    except BackboneError:
        return False
