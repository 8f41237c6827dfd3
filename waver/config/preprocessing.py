"""How frames become the input of a backbone: size, resizing, mean and standard deviation of the pixels.

open_clip stores these values for each of its pretrained tags, and the folder of a downloaded model contains them. Only
functions import open_clip, since most commands do not need these values.
"""

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from waver.data.video.resizing import Interpolation, ResizeMode
from waver.tools.errors import WaverError
from waver.tools.hub import is_downloaded, read_beside

Channels = tuple[float, float, float]
"""One number each for red, green and blue."""


class PreprocessingError(WaverError):
    """The preprocessing of a backbone cannot be determined, or waver does not have it."""


@dataclass(frozen=True)
class Preprocessing:
    """How a frame becomes the input of a backbone. The defaults are those of CLIP."""

    size: int = 224
    """Height and width, pixels."""
    resize: ResizeMode = "shortest"
    """See `waver.data.video.resizing.Resizing`."""
    interpolation: Interpolation = "bicubic"
    mean: Channels = (0.48145466, 0.4578275, 0.40821073)
    """Mean of the pixels, which are between 0 and 1."""
    std: Channels = (0.26862954, 0.26130258, 0.27577711)
    """Standard deviation of the same pixels."""
    source: str = "CLIP's values, since no others are known"
    """Where these values come from; `describe` ends with it."""

    def describe(self) -> str:
        """Names the values and their source in a sentence."""
        how = "the centre of the frame" if self.resize == "shortest" else "the whole frame, squashed"
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (self.mean, self.std))
        return (
            f"{self.size} x {self.size} pixels of {how} ({self.interpolation}), mean {mean}, standard deviation {std}: "
            f"{self.source}"
        )


def find_preprocessing(
    backbone: str | dict[str, Any], weights: str | None, replaced: Iterable[str] = ()
) -> Preprocessing:
    """Returns the preprocessing that belongs to a backbone with its weights.

    The values are those of the pretrained tag, or those that the folder of a downloaded model contains. For any other file
    they are those of all pretrained tags of the backbone's name, if these tags agree. CLIP's values are taken if the tags
    differ, and if the architecture has no name or one that open_clip does not know (which another check reports).

    Args:
        backbone: `model.backbone`.
        weights: `model.weights`.
        replaced: names of values of `Preprocessing` that settings replace. They are not checked.

    Raises:
        HubError: if the hub does not answer, or a file is damaged.
        PreprocessingError: if a folder asks for a preprocessing that waver does not have.
    """
    return _find(json.dumps(backbone, default=str), weights, frozenset(replaced))


@functools.lru_cache(maxsize=256)
def _find(backbone_json: str, weights: str | None, replaced: frozenset[str]) -> Preprocessing:
    import open_clip

    backbone: str | dict[str, Any] = json.loads(backbone_json)
    name = backbone.replace("/", "-") if isinstance(backbone, str) else ""
    tags = {tag: _of_tag(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)}
    architecture = backbone if isinstance(backbone, dict) else None if ":" in name else open_clip.get_model_config(name)
    usual = Preprocessing(size=_image_size(architecture))
    if weights in tags:
        return replace(usual, **tags[weights], source=f"the values of open_clip's weights {weights} of {name}")
    for place in (weights, backbone):
        if is_downloaded(place) and (described := _of_folder(place, replaced)):
            return replace(usual, **described, source=f"the values in the configuration of {place}")
    kinds = list({json.dumps(tag, sort_keys=True): tag for tag in tags.values()}.values())
    if len(kinds) == 1:
        return replace(usual, **kinds[0], source=f"the values of all of open_clip's weights of {name}")
    return (
        replace(usual, source=f"CLIP's values, since those of open_clip's weights of {name} differ") if kinds else usual
    )


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


def _channels(values: Any) -> Channels:
    """Returns three numbers as a tuple.

    Raises:
        PreprocessingError: if they are not three numbers.
    """
    try:
        red, green, blue = map(float, values)
    except (TypeError, ValueError):
        raise PreprocessingError(
            f"model.weights: the configuration beside them has the mean or standard deviation {values!r}, which should be "
            "three numbers: set both in that file"
        ) from None
    return red, green, blue


def _of_folder(place: str, replaced: frozenset[str]) -> dict[str, Any] | None:
    """Returns what the files beside downloaded weights say, as arguments of `Preprocessing`; None if there are none.

    Args:
        place: `hf-hub:owner/name`, a folder, or a file in it.
        replaced: see `find_preprocessing`.
    """
    if (settings := read_beside(place, "open_clip_config.json")) is not None:
        described = _of_open_clip(settings.get("preprocess_cfg") or {})
        described["size"] = _image_size(settings.get("model_cfg"))
    elif (settings := read_beside(place, "preprocessor_config.json")) is not None:
        described = _of_transformers(settings, place, replaced)
    else:
        return None
    described = {name: value for name, value in described.items() if name not in replaced}
    for name, possible in (("resize", ResizeMode), ("interpolation", Interpolation)):
        if described.get(name, get_args(possible)[0]) not in get_args(possible):
            raise PreprocessingError(
                f"model.weights: the configuration of {place} asks for {name} = {described[name]}, which waver does not "
                f"have: set video.{name} to one of {', '.join(get_args(possible))}"
            )
    return described


def _of_transformers(settings: Mapping[str, Any], place: str, replaced: frozenset[str]) -> dict[str, Any]:
    """Returns what a `preprocessor_config.json` of transformers says, as arguments of `Preprocessing`.

    Raises:
        PreprocessingError: if it asks for frames that are no squares, for a margin around the crop, or for pixels that are
            not between 0 and 1 before the normalisation.
    """
    cropped = settings.get("do_center_crop", "crop_size" in settings)
    size = settings.get("crop_size" if cropped else "size")
    sides = set(size.values()) if isinstance(size, Mapping) and "height" in size else set()
    margin = cropped and _side(settings.get("size")) not in (None, _side(size))
    if (len(sides) > 1 or margin) and "size" not in replaced:
        raise PreprocessingError(
            f"model.weights: the configuration of {place} asks for size = {settings.get('size')} and crop_size = "
            f"{settings.get('crop_size')}; waver's frames are squares without margin: set video.size"
        )
    if settings.get("do_rescale") is False or abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        raise PreprocessingError(
            f"model.weights: the configuration of {place} asks for do_rescale = {settings.get('do_rescale')} and "
            f"rescale_factor = {settings.get('rescale_factor')}, but waver's pixels are between 0 and 1: set do_rescale to "
            "true and rescale_factor to 1/255 in its preprocessor_config.json, and mean and standard deviation for them"
        )
    if settings.get("do_normalize") is False:
        settings = {**settings, "image_mean": (0, 0, 0), "image_std": (1, 1, 1)}
    filters = {2: "bilinear", 3: "bicubic"}  # numbers of PIL.Image.Resampling
    found = {
        "size": _side(size),
        "resize": "shortest" if cropped else "squash",
        "interpolation": filters.get(settings.get("resample", 3), settings.get("resample")),
        "mean": _channels(settings["image_mean"]) if settings.get("image_mean") else None,
        "std": _channels(settings["image_std"]) if settings.get("image_std") else None,
    }
    return {key: value for key, value in found.items() if value is not None}
