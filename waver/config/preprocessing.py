"""The pixels that a backbone was trained with: their number, how frames become them, their mean and standard deviation.

open_clip keeps them for each of its pretrained tags, and so does the folder of a downloaded model. open_clip is imported in
functions, since most commands never ask.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from waver.data.video.resizing import Interpolation, ResizeMode
from waver.tools.errors import WaverError
from waver.tools.hub import read_beside

Channels = tuple[float, float, float]
"""A number for red, green and blue."""


class PreprocessingError(WaverError):
    """The preprocessing of a backbone cannot be found out."""


@dataclass(frozen=True)
class Preprocessing:
    """How a frame becomes the input of a backbone; by default as CLIP's."""

    size: int = 224
    """Height and width, pixels."""
    resize: ResizeMode = "shortest"
    """See `waver.data.video.resizing.Resizing`."""
    interpolation: Interpolation = "bicubic"
    mean: Channels = (0.48145466, 0.4578275, 0.40821073)
    """Of pixels between 0 and 1."""
    std: Channels = (0.26862954, 0.26130258, 0.27577711)
    source: str = "CLIP's, for want of any other"
    """Where these values come from, as the end of a sentence."""

    def describe(self) -> str:
        """Says the values and their source."""
        how = "the centre of the frame" if self.resize == "shortest" else "the whole frame, squashed"
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (self.mean, self.std))
        return (
            f"{self.size} x {self.size} pixels of {how} ({self.interpolation}), mean {mean}, standard deviation {std}: "
            f"{self.source}"
        )


def find_preprocessing(backbone: str | dict[str, Any], weights: str | None) -> Preprocessing:
    """Returns the preprocessing that belongs to a backbone with its weights.

    A pretrained tag and the folder of a downloaded model say it. For a plain file, the tags of the backbone's name decide if
    they agree; CLIP's own values hold if they differ, and for an architecture without a name. They also hold for a backbone
    that open_clip does not know, which another check reports.

    Args:
        backbone: `model.backbone`.
        weights: `model.weights`.

    Raises:
        HubError: if the hub does not answer, or a file is damaged.
        PreprocessingError: if a folder asks for what waver cannot do.
    """
    return _find(json.dumps(backbone, default=str), weights)


@functools.lru_cache(maxsize=256)
def _find(backbone_json: str, weights: str | None) -> Preprocessing:
    import open_clip

    backbone: str | dict[str, Any] = json.loads(backbone_json)
    name = backbone.replace("/", "-") if isinstance(backbone, str) else ""
    tags = {tag: _of_tag(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)}
    architecture = backbone if isinstance(backbone, dict) else None if ":" in name else open_clip.get_model_config(name)
    usual = Preprocessing(size=_image_size(architecture))
    if weights in tags:
        return replace(usual, **tags[weights], source=f"those of open_clip's weights {weights} of {name}")
    for place in (weights, backbone):
        if isinstance(place, str) and (described := _of_folder(place)):
            return replace(usual, **described, source=f"those that {place} names")
    kinds = list({json.dumps(tag, sort_keys=True): tag for tag in tags.values()}.values())
    if len(kinds) == 1:
        return replace(usual, **kinds[0], source=f"those of all of open_clip's weights of {name}")
    return replace(usual, source=f"CLIP's, since open_clip's weights of {name} differ in theirs") if kinds else usual


def _image_size(architecture: Mapping[str, Any] | None) -> int:
    vision = (architecture or {}).get("vision_cfg")
    size = vision.get("image_size") if isinstance(vision, Mapping) else None
    return _side(size) or Preprocessing.size


def _side(size: Any) -> int | None:
    """Returns the side of a square, which may be written as one number, a list, or a mapping of the hub."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge", size.get("height"))
    elif isinstance(size, list | tuple):
        size = size[0] if size else None
    return size if isinstance(size, int) and size > 0 else None


def _of_tag(name: str, tag: str) -> dict[str, Any]:
    """Returns what open_clip's entry of a pretrained tag says, as arguments of `Preprocessing`."""
    import open_clip

    return _of_open_clip(open_clip.get_pretrained_cfg(name, tag))


def _of_open_clip(settings: Mapping[str, Any]) -> dict[str, Any]:
    names = {"resize": "resize_mode", "interpolation": "interpolation", "mean": "mean", "std": "std"}
    found = {ours: settings[theirs] for ours, theirs in names.items() if settings.get(theirs)}
    return {key: value if isinstance(value, str) else _channels(value) for key, value in found.items()}


def _channels(values: Sequence[float | int]) -> Channels:
    red, green, blue = map(float, values)
    return red, green, blue


def _of_folder(place: str) -> dict[str, Any] | None:
    """Returns what the files beside downloaded weights say, as arguments of `Preprocessing`; None if there are none.

    Args:
        place: `hf-hub:owner/name`, a folder, or a file in it.
    """
    if (settings := read_beside(place, "open_clip_config.json")) is not None:
        described = _of_open_clip(settings.get("preprocess_cfg") or {})
        described["size"] = _image_size(settings.get("model_cfg"))
    elif (settings := read_beside(place, "preprocessor_config.json")) is not None:
        described = _of_transformers(settings)
    else:
        return None
    for name, possible in (("resize", ResizeMode), ("interpolation", Interpolation)):
        if described.get(name, get_args(possible)[0]) not in get_args(possible):
            raise PreprocessingError(
                f"model.weights: {place} wants frames with {name} = {described[name]}, which waver cannot do; set "
                f"video.{name} to one of {', '.join(get_args(possible))} to use another"
            )
    return described


def _of_transformers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a `preprocessor_config.json` of transformers says, as arguments of `Preprocessing`."""
    cropped = settings.get("do_center_crop", "crop_size" in settings)
    size = settings.get("crop_size" if cropped else "size")
    filters = {2: "bilinear", 3: "bicubic"}  # numbers of PIL.Image.Resampling
    found = {
        "size": _side(size),
        "resize": "shortest" if cropped else "squash",
        "interpolation": filters.get(settings.get("resample", 3), settings.get("resample")),
        "mean": _channels(settings["image_mean"]) if settings.get("image_mean") else None,
        "std": _channels(settings["image_std"]) if settings.get("image_std") else None,
    }
    return {key: value for key, value in found.items() if value is not None}
