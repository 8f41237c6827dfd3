"""Resizes frames and crops their centre, as CLIP's preprocessing does."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image


def resize_and_crop(frames: np.ndarray, size: int) -> np.ndarray:
    """Resizes the short side to `size` (bicubic, antialiased) and crops the centre.

    Equals torchvision's Resize and CenterCrop on PIL images, but computes only the cropped pixels: half of the work for a
    wide video.

    Args:
        frames: uint8 (F, height, width, 3).
        size: height and width of the result, pixels.

    Returns:
        uint8 (F, size, size, 3), contiguous.
    """
    num_frames, height, width = frames.shape[:3]
    short = min(height, width)
    full = (int(size * height / short), int(size * width / short))
    rows, columns = (_crop_span(*lengths, size) for lengths in zip((height, width), full, strict=True))
    if full == (height, width):
        return np.ascontiguousarray(frames[:, rows.start : rows.start + size, columns.start : columns.start + size])
    box = (columns.box[0], rows.box[0], columns.box[1], rows.box[1])
    result = np.empty((num_frames, size, size, 3), np.uint8)
    for frame, target in zip(frames, result, strict=True):
        part = Image.fromarray(frame[rows.needed, columns.needed])
        target[:] = part.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return result


@dataclass(frozen=True)
class _CropSpan:
    """The centre crop along one dimension."""

    start: int
    """Start of the crop, in pixels of the resized frame."""
    needed: slice
    """Source pixels that the crop depends on."""
    box: tuple[float, float]
    """The crop in source pixels, counted from the start of `needed`."""


def _crop_span(source: int, resized: int, size: int) -> _CropSpan:
    start = round((resized - size) / 2)
    scale = source / resized
    # The bicubic kernel extends two pixels to each side, in the coarser of the two grids.
    reach = math.ceil(2 * max(1.0, scale)) + 1
    first = max(0, math.floor(start * scale) - reach)
    last = min(source, math.ceil((start + size) * scale) + reach)
    return _CropSpan(start, slice(first, last), (start * scale - first, min((start + size) * scale, source) - first))
