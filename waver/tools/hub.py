"""Files of repositories of the Hugging Face hub: in its cache, or from its host, which must answer within seconds."""

import ssl
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from waver.tools.network import call_within

LIMIT_S = 8.0
"""For a host to answer, the resolution of its name included."""


def find_cached(repository: str, *names: str) -> Path | None:
    """Returns the first of some files of a repository that was downloaded before; None if none was."""
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
    """Raises OSError if no server answers; any answer will do, and a certificate that only the hub's client knows."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=LIMIT_S).close()
    except urllib.error.URLError as error:
        if not isinstance(error, urllib.error.HTTPError) and not isinstance(error.reason, ssl.SSLError):
            raise
