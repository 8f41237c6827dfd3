"""Draws heat maps below the frames of a clip: one column per frame, one row per token or phrase."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from waver.runs.inspection.pictures import (
    GIVEN,
    INK,
    MARGIN,
    PALE,
    PAPER,
    Picture,
    blank,
    colour_bar,
    colours,
    font,
    line_height,
    one_line,
    shrink,
    text_width,
    wrap,
    write_lines,
)

_ROW, _BARS, _MAX_LABEL, _MIN_WIDTH = 20, 60, 220, 540


@dataclass(frozen=True)
class HeatMap:
    """Content of a heat map."""

    title: str
    """Wrapped to at most three lines."""
    notes: tuple[str, ...]
    """Explanation below the title."""
    labels: tuple[str, ...]
    """Labels of the rows."""
    values: Float[np.ndarray, "rows f"]
    low: float
    high: float
    """Ends of the colour scale."""
    row_weights: Float[np.ndarray, " rows"] | None = None
    """Drawn as bars beside the rows; None draws none."""
    column_weights: Float[np.ndarray, " f"] | None = None
    """Drawn as bars between the frames and their columns; None draws none."""
    mark_best: bool = False
    """Whether to frame the maximum of each row and underline the maximum of each column."""


def draw_heat_map(heat: HeatMap, frames: UInt8[np.ndarray, "f s s 3"]) -> Picture:
    """Draws a heat map below the frames of its columns."""
    num_rows, num_frames = heat.values.shape
    assert len(frames) == num_frames, "one column per frame"
    cell = max(24, min(64, 560 // num_frames))
    label_width = min(_MAX_LABEL, 10 + max((_width(label) for label in heat.labels), default=0))
    bars = _BARS if heat.row_weights is not None else 0
    left = MARGIN + label_width + bars
    width = max(left + num_frames * cell + 2 * MARGIN + 60, _MIN_WIDTH)
    title = wrap(heat.title, width=width - 2 * MARGIN, size=14, max_lines=3)
    notes = [line for note in heat.notes for line in wrap(note, width=width - 2 * MARGIN, size=11, max_lines=2)]
    y = MARGIN + len(title) * line_height(14) + len(notes) * line_height(11) + MARGIN
    columns = _BARS // 2 + 14 if heat.column_weights is not None else 0
    top = y + cell + columns + 2
    image, draw = blank(width, top + max(num_rows * _ROW, 60) + MARGIN)
    end = write_lines(draw, title, left=MARGIN, top=MARGIN, size=14)
    write_lines(draw, notes, left=MARGIN, top=end, size=11, colour=PALE)
    for number, frame in enumerate(shrink(frames, cell - 2)):
        image.paste(Image.fromarray(frame), (left + number * cell + 1, y))
    _draw_cells(image, draw, heat, left, top, cell)
    for row, label in enumerate(heat.labels):
        (line,) = wrap(label, width=label_width - 6, size=12, max_lines=1) or ("",)
        draw.text((MARGIN, top + row * _ROW + _ROW / 2), line, fill=INK, font=font(12), anchor="lm")
    _draw_weights(draw, heat, left, top, cell, bars, columns)
    colour_bar(
        image,
        left=left + num_frames * cell + MARGIN,
        top=top,
        height=max(num_rows * _ROW, 24),
        low=heat.low,
        high=heat.high,
    )
    return np.asarray(image)


def _width(label: str) -> int:
    return int(text_width(one_line(label), 12))


def _draw_cells(image: Image.Image, draw: ImageDraw.ImageDraw, heat: HeatMap, left: int, top: int, cell: int) -> None:
    filled = colours(heat.values, heat.low, heat.high)
    image.paste(Image.fromarray(filled.repeat(_ROW, 0).repeat(cell, 1)), (left, top))
    digits = 2 if heat.high - heat.low >= 0.3 else 3
    for row, column in np.ndindex(*heat.values.shape) if cell >= 36 else ():
        ink = INK if filled[row, column].sum() > 380 else PAPER
        place = (left + (column + 0.5) * cell, top + (row + 0.5) * _ROW)
        draw.text(place, f"{heat.values[row, column]:.{digits}f}", fill=ink, font=font(10), anchor="mm")
    if not heat.mark_best or not heat.values.size:
        return
    for row, column in enumerate(heat.values.argmax(1).tolist()):
        x, y = left + column * cell, top + row * _ROW
        draw.rectangle((x, y, x + cell - 1, y + _ROW - 1), outline=PAPER, width=2)
        draw.rectangle((x, y, x + cell - 1, y + _ROW - 1), outline=INK)
    for column, row in enumerate(heat.values.argmax(0).tolist()):
        x, y = left + column * cell, top + (row + 1) * _ROW - 1
        draw.rectangle((x + 3, y - 3, x + cell - 4, y - 1), fill=INK, outline=PAPER)


def _draw_weights(
    draw: ImageDraw.ImageDraw, heat: HeatMap, left: int, top: int, cell: int, bars: int, columns: int
) -> None:
    if heat.row_weights is not None:
        lengths = (heat.row_weights * (bars - 32) / max(heat.row_weights.max(), 1e-9)).round().astype(int)
        for row, (length, weight) in enumerate(zip(lengths.tolist(), heat.row_weights, strict=True)):
            x, y = left - 4, top + row * _ROW
            draw.rectangle((x - length, y + 4, x, y + _ROW - 5), fill=GIVEN)
            draw.text((x - length - 2, y + _ROW / 2), f"{weight:.2f}", fill=PALE, font=font(10), anchor="rm")
    if heat.column_weights is not None:
        lengths = (heat.column_weights * (columns - 16) / max(heat.column_weights.max(), 1e-9)).round().astype(int)
        for column, (length, weight) in enumerate(zip(lengths.tolist(), heat.column_weights, strict=True)):
            x, y = left + column * cell, top - 3
            draw.rectangle((x + 4, y - length, x + cell - 5, y), fill=GIVEN)
            draw.text((x + cell / 2, y - length - 2), f"{weight:.2f}", fill=PALE, font=font(10), anchor="mb")
