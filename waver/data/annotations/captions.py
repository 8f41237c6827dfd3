"""The caption table that every data set is read into, and the videos held out for validation."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from waver.tools.names import counted

SPLITS = ("train", "validation", "test")
USUAL_FRACTION = 0.05
"""Share of the training videos that is held out for validation if the configuration gives none."""

CAPTIONS_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("clip_id", pa.string()),
        ("path", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("caption", pa.string()),
        ("caption_index", pa.int32()),
        ("split", pa.string()),
        ("style", pa.string()),
    ]
)
"""One row per caption. Only `start_s` (null: from the beginning), `end_s` (null: to the end) and `style` may be null."""


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption of one clip: a row of `CAPTIONS_SCHEMA` without `caption_index`, which follows from the order."""

    video_id: str
    clip_id: str
    path: str
    start_s: float | None
    end_s: float | None
    caption: str
    split: str
    style: str | None


def choose_validation_videos(video_ids: Iterable[str], fraction: float | None, seed: int) -> set[str]:
    """Chooses the videos to hold out for validation: at least one; the choice does not depend on their order.

    Without a fraction it is `USUAL_FRACTION`. Of fewer than 1,000 videos this would be too few to tell models apart: then it
    is a fifth of them, but 50 at most.
    """
    # Sorting by a hash, not shuffling: neither the order of the rows nor the version of a random generator matters.
    ranked = sorted(set(video_ids), key=lambda video_id: hashlib.sha256(f"{seed}/{video_id}".encode()).digest())
    at_least = 1 if fraction else min(50, round(len(ranked) / 5))
    return set(ranked[: max(1, at_least, round((fraction or USUAL_FRACTION) * len(ranked)))])


def caption_table(
    captions: Iterable[Caption], *, validation: Literal["own", "held out of train"], left_out: int = 0
) -> pa.Table:
    """Builds the caption table.

    Args:
        captions: all captions of the data set.
        validation: origin of the validation split, see `validation_source`.
        left_out: number of clips without a caption in the styles that training reads, see `count_left_out`.

    Returns:
        A table of `CAPTIONS_SCHEMA`, in which (clip_id, caption_index) is unique. It is ordered by split (train, validation,
        test), then by first appearance of the clip; the captions of a clip are adjacent.
    """
    clips: dict[str, list[Caption]] = {}
    for caption in captions:
        clips.setdefault(caption.clip_id, []).append(caption)
    ordered = sorted(clips.values(), key=lambda clip: SPLITS.index(clip[0].split))
    rows = [caption for clip in ordered for caption in clip]
    columns = {name: [getattr(row, name) for row in rows] for name in Caption.__slots__}
    columns["caption_index"] = [index for clip in ordered for index in range(len(clip))]
    counts = {"left_out": str(left_out)} if left_out else {}
    schema = CAPTIONS_SCHEMA.with_metadata({"validation": validation, **counts})
    table = pa.table({name: columns[name] for name in CAPTIONS_SCHEMA.names}, schema=schema)

    nullable = {"start_s", "end_s", "style"}
    assert not any(table[name].null_count for name in set(CAPTIONS_SCHEMA.names) - nullable)
    assert all(len({caption.split for caption in clip}) == 1 for clip in ordered), "a clip in two splits"
    return table


def count_split(captions: pa.Table, split: str) -> tuple[int, int]:
    """Returns the number of clips and of captions of a split."""
    clip_ids = captions["clip_id"].filter(pc.equal(captions["split"], split))
    return len(pc.unique(clip_ids)), len(clip_ids)


def unique_clips(captions: pa.Table) -> pa.Table:
    """Returns one row per clip (clip_id, path, start_s, end_s), in the order of the captions."""
    clips = captions.select(["clip_id", "path", "start_s", "end_s"])
    _, first = np.unique(clips["clip_id"].to_numpy(), return_index=True)
    return clips.take(np.sort(first))


def validation_source(captions: pa.Table) -> str:
    """Returns the origin of the validation split: `own` (the data set has one) or `held out of train`."""
    return (captions.schema.metadata or {}).get(b"validation", b"own").decode()


def count_left_out(captions: pa.Table) -> int:
    """Returns the number of clips of train and validation that the table lacks, since no caption has a style to read."""
    return int((captions.schema.metadata or {}).get(b"left_out", b"0"))


def describe_left_out(captions: pa.Table) -> str:
    """Says how many clips are left out of training by their styles; empty if none is."""
    number, styles = count_left_out(captions), ", ".join(styles_of(captions, "train"))
    if not number:
        return ""
    verb = "is" if number == 1 else "are"
    return (
        f"{counted(number, 'clip')} of train and validation {verb} left out: none of their captions is in a style of "
        f"data.train_styles ({styles})"
    )


def styles_of(captions: pa.Table, split: str) -> tuple[str, ...]:
    """Returns the writing styles of the captions of a split, sorted; those without style do not count."""
    return tuple(
        sorted(pc.unique(captions["style"].filter(pc.equal(captions["split"], split)).drop_null()).to_pylist())
    )
