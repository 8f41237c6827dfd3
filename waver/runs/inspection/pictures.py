"""Drawing primitives of all pictures: wrapped text, thumbnails, and a colour scale.

A picture is an RGB array (H, W, 3) of uint8. Pillow draws with its built-in font, so a picture is the same on every machine.
"""

import functools
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from waver.data.clip_store import ClipStore

Picture = UInt8[np.ndarray, "H W 3"]
Colour = tuple[int, int, int]

PAPER, INK, PALE, RULE = (255, 255, 255), (30, 30, 30), (110, 110, 110), (215, 215, 215)
RIGHT, WRONG, GIVEN = (20, 150, 60), (215, 40, 40), (60, 90, 160)
"""Colours of a correct answer, of a wrong answer, and of the query."""
MARGIN = 8

# From dark (low) to bright (high), in even steps of lightness; colours between them are interpolated.
_SCALE = np.array(
    [(23, 16, 60), (57, 44, 122), (45, 93, 148), (37, 140, 140), (75, 183, 110), (173, 213, 74), (253, 240, 110)], float
)
_MAX_CHARACTERS = 1000


def to_png(picture: Picture) -> bytes:
    """Encodes a picture as PNG with a palette of 256 colours, which takes a third of the size without visible loss."""
    buffer = io.BytesIO()
    palette = Image.fromarray(picture).quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette.save(buffer, "PNG")
    return buffer.getvalue()


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Returns Pillow's built-in font. It draws letters that it lacks as boxes."""
    return ImageFont.load_default(size)


def one_line(text: str) -> str:
    """Makes a text one printable line: no line breaks, control characters or lone surrogates; cut if very long."""
    text = text[:_MAX_CHARACTERS].encode("utf-8", "replace").decode()
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def wrap(text: str, *, width: int, size: int, max_lines: int) -> list[str]:
    """Wraps a text into lines, between words where possible.

    Args:
        text: the text.
        width: maximum width of a line in pixels.
        size: font size.
        max_lines: maximum number of lines; if text is left over, the last line ends in dots.
    """
    lines: list[str] = []
    line, used, space = "", 0.0, text_width(" ", size)
    words = one_line(text).split(" ")
    while words and len(lines) < max_lines:
        word = words.pop(0)
        word_width = text_width(word, size)
        if not line and word_width > width:  # cut the word, after one letter at least
            cut = next((n for n in range(1, len(word)) if text_width(word[: n + 1], size) > width), len(word))
            lines.append(word[:cut])
            words[:0] = [word[cut:]] if word[cut:] else []
        elif not line or used + space + word_width <= width:
            line, used = f"{line} {word}" if line else word, used + (space if line else 0) + word_width
        else:
            lines.append(line)
            line, used = "", 0.0
            words.insert(0, word)
    if line and len(lines) < max_lines:
        return [*lines, line]
    if line or words:
        last = lines[-1]
        while last and font(size).getlength(f"{last}...") > width:
            last = last[:-1]
        lines[-1] = f"{last}..."
    return lines


@functools.lru_cache(maxsize=4096)
def text_width(word: str, size: int) -> float:
    """Returns the width of a word in pixels; cached, because most words occur often."""
    return font(size).getlength(word)


def blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Returns an empty image and its drawing context."""
    image = Image.new("RGB", (width, height), PAPER)
    return image, ImageDraw.Draw(image)


def write_lines(
    draw: ImageDraw.ImageDraw, lines: Sequence[str], *, left: int, top: int, size: int, colour: Colour = INK
) -> int:
    """Draws lines below each other; returns the y coordinate of the next line."""
    for line in lines:
        draw.text((left, top), line, fill=colour, font=font(size))
        top += line_height(size)
    return top


def line_height(size: int) -> int:
    """Returns the distance between lines in pixels."""
    return round(1.3 * size)


def read_thumbnails(
    store: ClipStore, clip_ids: Sequence[str], *, size: int, num_frames: int
) -> dict[str, UInt8[np.ndarray, "_ s s 3"]]:
    """Reads evenly spaced, small frames of clips.

    Args:
        store: clip store.
        clip_ids: ids of clips; repeated ones, and clips that could not be decoded, are allowed.
        size: side of a thumbnail in pixels.
        num_frames: maximum number of frames of a clip.

    Returns:
        Clip id -> frames; an empty array for a clip that could not be decoded.
    """
    decoded = set(store.ok_clip_ids())
    found: dict[str, UInt8[np.ndarray, "_ s s 3"]] = {}
    for clip_id in dict.fromkeys(clip_ids):
        if clip_id not in decoded:
            found[clip_id] = np.zeros((0, size, size, 3), np.uint8)
            continue
        frames, (length,) = store.read([clip_id])  # one at a time, to save memory
        chosen = np.linspace(0, length - 1, min(length, num_frames)).round().astype(int)
        found[clip_id] = shrink(frames[0, chosen], size)
    return found


def shrink(frames: UInt8[np.ndarray, "f h w 3"], size: int) -> UInt8[np.ndarray, "f s s 3"]:
    """Resizes frames to squares with a side of `size` pixels."""
    if frames.shape[1:3] == (size, size):
        return frames
    how = Image.Resampling.BOX if frames.shape[1] > size else Image.Resampling.BILINEAR
    small = [np.asarray(Image.fromarray(frame).resize((size, size), how)) for frame in frames]
    return np.stack(small) if small else np.zeros((0, size, size, 3), np.uint8)


def colours(values: Float[np.ndarray, "*shape"], low: float, high: float) -> UInt8[np.ndarray, "*shape 3"]:
    """Maps numbers to colours, from dark (`low`) to bright (`high`)."""
    place = np.clip((values - low) / (high - low) if high > low else np.zeros_like(values), 0, 1) * (len(_SCALE) - 1)
    first = np.minimum(place.astype(int), len(_SCALE) - 2)
    part = (place - first)[..., None]
    return ((1 - part) * _SCALE[first] + part * _SCALE[first + 1]).round().astype(np.uint8)


def colour_bar(image: Image.Image, *, left: int, top: int, height: int, low: float, high: float) -> None:
    """Draws the colour scale of `colours` with its values; 60 pixels wide."""
    draw = ImageDraw.Draw(image)
    scale = colours(np.linspace(high, low, height)[:, None].repeat(12, 1), low, high)
    image.paste(Image.fromarray(scale), (left, top))
    for part in (0, 0.5, 1) if height >= 60 else (0, 1):
        y = top + part * (height - 1)
        draw.text((left + 16, y), f"{high + part * (low - high):.2f}", fill=INK, font=font(10), anchor="lm")
