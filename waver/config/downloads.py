"""Names of backbones and weights in the configuration: open_clip's, files, and downloaded models."""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from waver.tools.hub import HUB


def with_own_weights(section: Any) -> Any:
    """Returns a raw section with `backbone` and `weights`; a downloaded backbone brings its weights if none are named."""
    if isinstance(section, dict) and "weights" not in section and _is_downloaded(section.get("backbone")):
        return section | {"weights": section["backbone"]}
    return section


def _absolute_backbone(backbone: Any) -> Any:
    if isinstance(backbone, str) and _is_folder(backbone):
        return str(Path(backbone).expanduser().absolute())
    return backbone


def _absolute_weights(weights: str) -> str:
    path = Path(weights).expanduser()
    # A name that a pretrained tag and a file share means the tag.
    is_file = os.path.isfile(path) and (path.suffix or len(path.parts) > 1)  # noqa: PTH113 (its folder may be unreadable)
    return str(path.absolute()) if is_file or _is_folder(weights) else weights


def _is_downloaded(backbone: Any) -> bool:
    return isinstance(backbone, str) and (backbone.startswith(HUB) or _is_folder(backbone))


def _is_folder(place: str) -> bool:
    """Returns whether a place is a folder, written as a path: a bare name means a model or tag, even if a folder has it."""
    return ("/" in place or place.startswith("~")) and os.path.isdir(Path(place).expanduser())  # noqa: PTH112


BackboneName = Annotated[str | dict[str, Any], AfterValidator(_absolute_backbone)]
"""A name of open_clip, a repository of the hub, a folder, or a model configuration of open_clip."""
WeightsName = Annotated[str, AfterValidator(_absolute_weights)]
"""A file, a repository of the hub, a folder, or a pretrained tag of open_clip."""
