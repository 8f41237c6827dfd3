"""Searches an index exactly: the model's own interaction compares the query with every window."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import pyarrow.compute as pc
import torch
from jaxtyping import Float
from torch import Tensor

from waver.data.embedding_store import EmbeddingStore
from waver.model.embeddings import Embeddings
from waver.runs.checkpoint import checkpoint_config
from waver.search.index import SearchError, checkpoint_digest, read_settings, read_windows, thumbnail_path
from waver.search.model import Model

_CHUNK = 4096
"""Windows that are compared with the queries at a time."""
_CACHED_FRACTION = 0.25
"""Part of the available memory up to which the embeddings of an index are kept in memory."""


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

    def as_json(self) -> dict[str, Any]:
        """Returns the fields with paths as text."""
        return asdict(self) | {"path": str(self.path), "thumbnail": str(self.thumbnail)}


class Index:
    """An index that is open for search; it has the windows that existed when it was opened.

    Attributes:
        path: folder of the index.
        settings: see `IndexSettings`.
        windows: the windows that can be found, WINDOWS_SCHEMA.

    Raises:
        SearchError: if there is no index, it is damaged or empty, or its model has changed.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.settings = read_settings(self.path)
        table = read_windows(self.path)
        self.windows = table.filter(pc.equal(table["status"], "ok"))
        if not len(self.windows):
            raise SearchError(f"{self.path} has no windows yet: run `waver index RUN VIDEOS --to {self.path}`")
        checkpoint = Path(self.settings.checkpoint)
        if not checkpoint.is_dir() or checkpoint_digest(checkpoint) != self.settings.weights:
            raise SearchError(
                f"the model of {self.path} has changed or is gone ({checkpoint}): index again, into another folder"
            )

    def __len__(self) -> int:
        return len(self.windows)

    @cached_property
    def model(self) -> Model:
        """The model of the index, loaded when it is first needed."""
        checkpoint = Path(self.settings.checkpoint)
        return Model(checkpoint, checkpoint_config(checkpoint))

    def search(self, query: str, top: int = 10, *, distinct: bool = True) -> list[Answer]:
        """Returns the windows that fit a sentence best; see `search_all`."""
        return self.search_all([query], top, distinct=distinct)[0]

    def search_all(self, queries: Sequence[str], top: int = 10, *, distinct: bool = True) -> list[list[Answer]]:
        """Returns, for each sentence, the windows that fit it best.

        Windows with equal scores are sorted by video and time.

        Args:
            queries: the sentences.
            top: number of windows to return for each.
            distinct: whether to leave out windows that overlap a better one of the same video.

        Raises:
            SearchError: if a query is empty, or a score is NaN.
        """
        if empty := [number for number, query in enumerate(queries) if not query.strip()]:
            raise SearchError(f"query {empty[0] + 1} is empty: write a sentence that describes what to find")
        scores = self.scores(self.model.embed_texts(queries))
        return [self._answers(row, top, distinct) for row in scores]

    @torch.no_grad()
    def scores(self, text: Embeddings) -> Float[Tensor, "T windows"]:
        """Computes the similarity of texts with every window, in the order of `windows`.

        Raises:
            SearchError: if a score is NaN.
        """
        scores = torch.cat([self.model.similarity(text, chunk).cpu() for chunk in self._chunks()], dim=1)
        if scores.isnan().any():
            window = self.windows["window_id"][int(scores.isnan().any(dim=0).int().argmax())].as_py()
            raise SearchError(f"the score of {window} is NaN: look for a diverged checkpoint or damaged weights")
        return scores

    def _answers(self, scores: Float[Tensor, " windows"], top: int, distinct: bool) -> list[Answer]:
        answers: list[Answer] = []
        for number in scores.argsort(descending=True, stable=True).tolist():
            window = self._rows[number]
            if distinct and any(_overlap(window, answer) for answer in answers):
                continue
            place = thumbnail_path(self.path, window["window_id"], window["source"])
            end_s = window["end_s"]
            if end_s is not None and window["video_s"] is not None:  # the last window may reach beyond the video
                end_s = min(end_s, window["video_s"])
            times = (window["start_s"], end_s)
            answers.append(
                Answer(len(answers) + 1, scores[number].item(), window["video_id"], Path(window["path"]), *times, place)
            )
            if len(answers) == top:
                break
        return answers

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        return self.windows.to_pylist()

    def _chunks(self) -> Iterator[Embeddings]:
        """Yields the embeddings of all windows; keeps them if they need a small part of the available memory."""
        starts = range(0, len(self), _CHUNK)
        if self._num_bytes > _CACHED_FRACTION * psutil.virtual_memory().available and not self._cache:
            yield from map(self._read, starts)
            return
        for start in starts:
            if start not in self._cache:
                self._cache[start] = self._read(start)
            yield self._cache[start]

    @cached_property
    def _cache(self) -> dict[int, Embeddings]:
        return {}

    @property
    def _num_bytes(self) -> int:
        return len(self) * self.model.config.video.max_frames * self.settings.embeddings.width * 4

    @cached_property
    def _store(self) -> EmbeddingStore:
        return EmbeddingStore(self.path / "embeddings")

    @torch.no_grad()
    def _read(self, start: int) -> Embeddings:
        """Reads the embeddings of a chunk of windows, and weighs their frames."""
        rows = self.windows.slice(start, _CHUNK)
        items = list(zip(rows["window_id"].to_pylist(), rows["source"].to_pylist(), strict=True))
        length = self.model.config.video.max_frames
        values, lengths = (torch.from_numpy(array).to(self.model.device) for array in self._store.read(items, length))
        mask = torch.arange(length, device=lengths.device) < lengths[:, None]
        return self.model.student.weigh_frames(values, mask)


def open_index(folder: Path | str) -> Index:
    """Opens an index that `waver index` made.

    Raises:
        SearchError: see `Index`.
    """
    return Index(folder)


def _overlap(window: dict[str, Any], answer: Answer) -> bool:
    if window["video_id"] != answer.video_id:
        return False
    if window["start_s"] is None or answer.start_s is None or answer.end_s is None:
        return True
    return window["start_s"] < answer.end_s and answer.start_s < window["end_s"]
