"""Chooses and describes the windows that a search returns."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
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


@dataclass(frozen=True)
class Match:
    """How well a sentence fits a moment of a video."""

    sentence: str
    score: float
    """Similarity by the model, without its logit scale."""
    share: float
    """Softmax of the scaled scores: probability of the sentence, if exactly one of those that were compared fits."""

    def as_json(self) -> dict[str, Any]:
        """Returns the fields."""
        return asdict(self)


class WindowRows(Sequence[dict[str, Any]]):
    """The rows of a table of windows as dictionaries, each made when it is read: of a million rows, few are."""

    def __init__(self, windows: pa.Table):
        self._windows = windows.combine_chunks()

    def __len__(self) -> int:
        return len(self._windows)

    @overload
    def __getitem__(self, number: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, number: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, number: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """Returns the row with a number, from 0, or several rows."""
        if isinstance(number, slice):
            start, stop, step = number.indices(len(self))
            return self._windows.take(pa.array(range(start, stop, step), pa.int64())).to_pylist()
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self._windows.slice(number, 1).to_pylist()[0]


def best_windows(
    scores: Float[Tensor, " windows"],
    numbers: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    *,
    distinct: bool,
    among: Bool[np.ndarray, " rows"] | None = None,
    taken: Sequence[int] = (),
) -> Iterator[int]:
    """Yields the positions in `scores` of the windows to return, best first; equal scores in the order of `numbers`.

    Args:
        scores: scores of some windows.
        numbers: row of each of these windows in `rows`, ascending.
        rows: all windows of the index.
        distinct: whether to leave out windows that overlap a better one of the same video.
        among: which windows may be returned; None for all.
        taken: rows of windows that are never returned; with `distinct`, windows that overlap them are not either.
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
    (start, end), (other_start, other_end) = span_of(window), span_of(other)
    return start < other_end and other_start < end


def span_of(window: Mapping[str, Any]) -> tuple[float, float]:
    """Returns start and end of a window of `WINDOWS_SCHEMA`, in seconds; inf if it ends with a video of unknown length."""
    start_s, end_s, video_s = window["start_s"], window["end_s"], window["video_s"]
    return start_s or 0.0, min(math.inf if each is None else each for each in (end_s, video_s))


def describe_window(index: Path, row: Mapping[str, Any], number: int, rank: int, score: float) -> Answer:
    """Returns a window of the index in the folder `index` as an answer; its end is at most the end of the video."""
    end_s = None if row["end_s"] is None else span_of(row)[1]
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
