"""Finds weights that open_clip downloads: in its caches, or on their hosts, which must answer within seconds."""

import os
import ssl
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

from waver.tools.network import call_within

_LIMIT_S = 8.0
"""For the host to answer, the resolution of its name included."""


def cached_weights(entry: dict[str, Any]) -> Path | None:
    """Returns the file of open_clip's entry of a pretrained tag if it was downloaded before, else None."""
    if not entry.get("hf_hub"):
        path = Path("~/.cache/clip", Path(urlsplit(entry["url"]).path).name).expanduser()
        return path if zipfile.is_zipfile(path) else None  # an archive that was cut off has no directory at its end
    owner, names = _files_on_hub(entry)
    found = (huggingface_hub.try_to_load_from_cache(owner, name) for name in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def weights_url(entry: dict[str, Any]) -> str:
    """Returns the address of the file of open_clip's entry of a pretrained tag."""
    if not entry.get("hf_hub"):
        return entry["url"]
    owner, names = _files_on_hub(entry)
    return f"{constants.ENDPOINT}/{owner}/resolve/main/{names[0]}"


def host_problem(entry: dict[str, Any]) -> str:
    """Returns why the host of open_clip's entry of a pretrained tag does not answer; empty if it does. Takes 8 s at most."""
    if entry.get("hf_hub") and constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    url = constants.ENDPOINT if entry.get("hf_hub") else entry["url"]
    try:
        call_within(_LIMIT_S, _ask, url)
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        return f"{urlsplit(url).hostname} does not answer ({reason})"
    return ""


def _ask(url: str) -> None:
    """Raises OSError if no server answers; any answer will do, and a certificate that only the hub's client knows."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_LIMIT_S).close()
    except urllib.error.URLError as error:
        if not isinstance(error, urllib.error.HTTPError) and not isinstance(error.reason, ssl.SSLError):
            raise


def _files_on_hub(entry: dict[str, Any]) -> tuple[str, list[str]]:
    """Returns the repository, and the names of the file in the order in which open_clip looks for them."""
    owner, name = os.path.split(entry["hf_hub"])
    if not name:
        return owner, [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    path = Path(name)
    return owner, [f"{path.stem}.safetensors", name] if path.suffix in (".bin", ".pth") else [name]
