"""Draws strips: a query and its top answers, from text to video and from video to text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from waver.evaluation.evaluate import Evaluation
from waver.evaluation.top_clips import TopClips
from waver.runs.inspection.pictures import (
    GIVEN,
    INK,
    MARGIN,
    PALE,
    RIGHT,
    RULE,
    WRONG,
    Colour,
    Picture,
    blank,
    line_height,
    wrap,
    write_lines,
)

FRAME_SIZE, NUM_FRAMES = 72, 4
NUM_FOUND = 5
_LABEL, _TEXT, _BORDER = 64, 250, 3
_WIDTH = 2 * MARGIN + _LABEL + NUM_FRAMES * (FRAME_SIZE + 2 * _BORDER) + MARGIN + _TEXT

Thumbnails = Mapping[str, UInt8[np.ndarray, "_ s s 3"]]


@dataclass(frozen=True)
class StripRow:
    """A row of a strip: a clip, a caption, or both."""

    colour: Colour
    """Colour of the rank and of the borders of frames: RIGHT, WRONG or GIVEN."""
    labels: tuple[str, ...]
    """Rank and score."""
    text: str
    clip_id: str
    frames: UInt8[np.ndarray, "f s s 3"] | None
    """None draws no frames; an empty array (f = 0) draws a note that the clip was not decoded."""


def text_to_video(
    evaluation: Evaluation, texts: Sequence[str], text: int, thumbnails: Thumbnails, *, num_found: int = NUM_FOUND
) -> Picture:
    """Draws a caption, its clip, and its top clips with a caption of each.

    Args:
        evaluation: evaluation with `ranks.top`.
        texts: captions of the evaluation, in its order.
        text: index of the query.
        thumbnails: frames of the clips in `clips_of_strip`, by clip id.
        num_found: maximum number of top clips.
    """
    top, right = _top_clips(evaluation), int(evaluation.clip_of_text[text])
    clip_id = evaluation.clip_ids[right]
    own = [t for t in _texts_of(evaluation, right) if t != text][:1]
    rows = [StripRow(GIVEN, ("its clip",), texts[own[0]] if own else "", clip_id, thumbnails[clip_id])]
    for rank, (clip, score) in enumerate(
        zip(top.clips[text, :num_found].tolist(), top.scores[text, :num_found].tolist(), strict=True), 1
    ):
        if clip >= 0:
            found = evaluation.clip_ids[clip]
            labels, colour = (f"{rank}", f"{score:.3f}"), RIGHT if clip == right else WRONG
            rows.append(StripRow(colour, labels, texts[_texts_of(evaluation, clip)[0]], found, thumbnails[found]))
    outcome = _rank_words(float(evaluation.ranks.t2v[text]), len(evaluation.clip_ids))
    return draw_strip(texts[text], f"{evaluation.text_ids[text]}: its clip is {outcome}", rows)


def video_to_text(
    evaluation: Evaluation, texts: Sequence[str], clip: int, thumbnails: Thumbnails, *, num_found: int = NUM_FOUND
) -> Picture:
    """Draws a clip, its captions, and its top captions; all captions of one clip count as one answer.

    Args:
        evaluation: evaluation with `ranks.top_groups`.
        texts: captions of the evaluation, in its order.
        clip: index of the query in the gallery.
        thumbnails: frames of the clip, by clip id.
        num_found: maximum number of answers.
    """
    top, clip_id = evaluation.ranks.top_groups, evaluation.clip_ids[clip]
    assert top is not None, "evaluate with top_k > 0"
    own = " / ".join(texts[text] for text in _texts_of(evaluation, clip))
    rows = [StripRow(GIVEN, ("the clip",), own, clip_id, thumbnails[clip_id])]
    for rank, (group, score) in enumerate(
        zip(top.clips[clip, :num_found].tolist(), top.scores[clip, :num_found].tolist(), strict=True), 1
    ):
        if group >= 0:
            captions = [texts[text] for text in _texts_of(evaluation, group)]
            number = "" if len(captions) == 1 else f" ({len(captions)} captions)"
            labels, colour = (f"{rank}", f"{score:.3f}"), RIGHT if group == clip else WRONG
            rows.append(StripRow(colour, labels, " / ".join(captions), evaluation.clip_ids[group] + number, None))
    outcome = _rank_words(float(evaluation.ranks.v2t[clip]), len(evaluation.clip_ids))
    return draw_strip(clip_id, f"its captions are {outcome}", rows)


def clips_of_strip(evaluation: Evaluation, text: int, *, num_found: int = NUM_FOUND) -> list[str]:
    """Returns the ids of the clips that `text_to_video` draws."""
    found = [clip for clip in _top_clips(evaluation).clips[text, :num_found].tolist() if clip >= 0]
    return [evaluation.clip_ids[clip] for clip in (int(evaluation.clip_of_text[text]), *found)]


def draw_strip(title: str, detail: str, rows: Sequence[StripRow]) -> Picture:
    """Draws rows below a title and a line of detail."""
    title_lines = wrap(title, width=_WIDTH - 2 * MARGIN, size=16, max_lines=4)
    detail_lines = wrap(detail, width=_WIDTH - 2 * MARGIN, size=12, max_lines=1)
    top = MARGIN + len(title_lines) * line_height(16) + len(detail_lines) * line_height(12) + MARGIN
    image, draw = blank(_WIDTH, top + sum(_row_height(row) for row in rows) + MARGIN // 2)
    y = write_lines(draw, title_lines, left=MARGIN, top=MARGIN, size=16)
    write_lines(draw, detail_lines, left=MARGIN, top=y, size=12, colour=PALE)
    for row in rows:
        _draw_row(image, draw, row, top)
        top += _row_height(row)
    return np.asarray(image)


def _row_height(row: StripRow) -> int:
    return 50 if row.frames is None else FRAME_SIZE + 2 * _BORDER + 5


def _draw_row(image: Image.Image, draw: ImageDraw.ImageDraw, row: StripRow, top: int) -> None:
    draw.line((MARGIN, top - 2, _WIDTH - MARGIN, top - 2), fill=RULE)
    draw.rectangle((MARGIN, top + 2, MARGIN + 4, top + _row_height(row) - 6), fill=row.colour)
    y = write_lines(draw, row.labels[:1], left=MARGIN + 10, top=top + 2, size=14, colour=row.colour)
    write_lines(draw, row.labels[1:], left=MARGIN + 10, top=y, size=12, colour=PALE)
    left, side = MARGIN + _LABEL, FRAME_SIZE + 2 * _BORDER
    if row.frames is not None:
        for number, frame in enumerate(row.frames[:NUM_FRAMES]):
            x = left + number * side
            draw.rectangle((x, top, x + side - 2, top + side - 1), fill=row.colour)
            image.paste(Image.fromarray(frame), (x + _BORDER, top + _BORDER))
        if not len(row.frames):
            draw.rectangle((left, top, left + NUM_FRAMES * side - 2, top + side - 1), outline=row.colour, fill=RULE)
            write_lines(draw, ["no frames: not decoded"], left=left + 10, top=top + 30, size=12)
        left += NUM_FRAMES * side + MARGIN
    width, max_lines = _WIDTH - MARGIN - left, 4 if row.frames is not None else 2
    y = write_lines(
        draw, wrap(row.clip_id, width=width, size=11, max_lines=1), left=left, top=top, size=11, colour=PALE
    )
    write_lines(draw, wrap(row.text, width=width, size=12, max_lines=max_lines), left=left, top=y, size=12, colour=INK)


def _top_clips(evaluation: Evaluation) -> TopClips:
    assert evaluation.ranks.top is not None, "evaluate with top_k > 0"
    return evaluation.ranks.top


def _texts_of(evaluation: Evaluation, clip: int) -> list[int]:
    return (evaluation.clip_of_text == clip).nonzero().squeeze(1).tolist()


def _rank_words(rank: float, gallery_size: int) -> str:
    """Describes a rank, which a tie can make fractional, or a miss (infinite)."""
    return "not decoded: a miss" if rank == float("inf") else f"found at rank {rank:g} of {gallery_size}"
