"""Draws the similarity matrix of captions and clips."""

import numpy as np
from jaxtyping import Float
from PIL import Image

from waver.runs.inspection.pictures import (
    INK,
    MARGIN,
    PALE,
    RIGHT,
    WRONG,
    Picture,
    blank,
    colour_bar,
    colours,
    line_height,
    write_lines,
)

_SIDE = 640


def similarity_matrix(similarity: Float[np.ndarray, "n n"]) -> Picture:
    """Draws one row per caption and one column per clip, with matching pairs on the diagonal.

    The highest similarity of each row is framed: green on the diagonal, red elsewhere.
    """
    num = len(similarity)
    cell = max(6, min(40, _SIDE // max(num, 1)))
    side, low, high = cell * num, float(similarity.min()), float(similarity.max())
    best = similarity.argmax(1)
    num_correct = int((best == np.arange(num)).sum())
    lines = [
        f"similarity of {num} captions (rows) with their {num} clips (columns)",
        f"matches on the diagonal; framed: best of each row, correct in {num_correct} of {num}",
    ]
    top = MARGIN + line_height(14) + line_height(12) + MARGIN
    image, draw = blank(max(side + 3 * MARGIN + 60, 480), top + side + MARGIN)
    write_lines(draw, lines[:1], left=MARGIN, top=MARGIN, size=14, colour=INK)
    write_lines(draw, lines[1:], left=MARGIN, top=MARGIN + line_height(14), size=12, colour=PALE)
    cells = colours(similarity, low, high).repeat(cell, 0).repeat(cell, 1)
    image.paste(Image.fromarray(cells), (MARGIN, top))
    for row, column in enumerate(best.tolist()):
        x, y = MARGIN + column * cell, top + row * cell
        colour = RIGHT if row == column else WRONG
        draw.rectangle((x, y, x + cell - 1, y + cell - 1), outline=colour, width=2 if cell >= 8 else 1)
    colour_bar(image, left=2 * MARGIN + side, top=top, height=side, low=low, high=high)
    return np.asarray(image)
