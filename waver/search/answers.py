"""Chooses and describes the windows that a search returns."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from waver.search.index import thumbnail_path


@dataclass(frozen=True)
class Answer:
    """A window that a search returns."""

    rank: int
    """From 1."""
    score: float
    """Similarity by the model, without its logit scale: a value to rank windows by, not a probability."""
    video_id: str
    path: Path
    start_s: float | None
    """None for the start of the video."""
    end_s: float | None
    """None for the end of the video."""
    thumbnail: Path
    window_id: str
    window: int
    """Row of the window in `Index.windows`."""

    def as_json(self) -> dict[str, Any]:
        """Returns the fields with paths as text."""
        return asdict(self) | {"path": str(self.path), "thumbnail": str(self.thumbnail)}


def best_windows(
    scores: Float[Tensor, " windows"],
    numbers: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    *,
    distinct: bool,
    among: Bool[np.ndarray, " rows"] | None = None,
    taken: Sequence[int] = (),
) -> Iterator[int]:
    """Yields positions in `scores`, best first; equal scores in the order of `numbers`.

    Args:
        scores: of some windows.
        numbers: row of each of these windows, ascending.
        rows: all windows of the index.
        distinct: whether to leave out windows that overlap a better one of the same video.
        among: which windows may be returned; None for all.
        taken: windows that are never returned; with `distinct`, neither are those that overlap one of them.
    """
    chosen: dict[str, list[int]] = {}
    for number in taken:
        chosen.setdefault(rows[number]["video_id"], []).append(number)
    for position in scores.argsort(descending=True, stable=True).tolist():
        number = numbers[position]
        if number in taken or (among is not None and not among[number]):
            continue
        of_video = chosen.setdefault(rows[number]["video_id"], [])
        if distinct and any(_overlap(rows[number], rows[other]) for other in of_video):
            continue
        of_video.append(number)
        yield position


def _overlap(window: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Returns whether two windows of one video overlap."""
    if window["start_s"] is None or other["start_s"] is None:
        return True
    return window["start_s"] < other["end_s"] and other["start_s"] < window["end_s"]


def describe_window(index: Path, row: Mapping[str, Any], number: int, rank: int, score: float) -> Answer:
    """Returns a window of the index in the folder `index` as an answer; its end is at most the end of the video."""
    end_s = row["end_s"]
    if end_s is not None and row["video_s"] is not None:  # the last window may reach beyond the video
        end_s = min(end_s, row["video_s"])
    return Answer(
        rank=rank,
        score=score,
        video_id=row["video_id"],
        path=Path(row["path"]),
        start_s=row["start_s"],
        end_s=end_s,
        thumbnail=thumbnail_path(index, row["window_id"], row["source"]),
        window_id=row["window_id"],
        window=number,
    )
