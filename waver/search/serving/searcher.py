"""Searches one index for the page: filtered results, the scores of a whole video, and explanations."""

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from waver.model.embeddings import Embeddings
from waver.search.answers import Answer
from waver.search.calibration import Calibration
from waver.search.index import thumbnail_path
from waver.search.search import Index, open_index
from waver.search.serving.explanation import Explanation, explain
from waver.search.serving.judgements import Judged
from waver.search.serving.videos import Span
from waver.tools.errors import WaverError
from waver.training.build import build_tokenizer

_MODEL = ThreadPoolExecutor(1, thread_name_prefix="model")
"""The thread in which all models compute. With OpenMP, each thread that computes has worker threads of its own; those of two
threads compete for the cores, which doubles the time of a query even if only one computes."""
_CACHED_QUERIES = 32
_MOMENTS = 5
_MAX_FOLDERS = 1000
MAX_CHARACTERS = 2000


class QueryError(WaverError):
    """A query or its filters cannot be used."""


@dataclass(frozen=True)
class Filters:
    """Which windows a search may return."""

    folder: str = ""
    """Folder of videos, or id of one video; empty for all."""
    min_s: float | None = None
    """Shortest length of a video, seconds."""
    max_s: float | None = None
    """Greatest length of a video, seconds."""


class Searcher:
    """An open index with its model. It computes one query at a time, so threads may share it.

    Args:
        folder: folder of the index.

    Attributes:
        index: the index.

    Raises:
        SearchError: see `waver.search.Index`.
    """

    def __init__(self, folder: Path):
        self.index: Index = open_index(folder)
        self._texts: OrderedDict[str, Embeddings] = OrderedDict()  # the query that was used last is last

    @cached_property
    def run(self) -> str:
        """Name of the run whose model made the index."""
        checkpoint = Path(self.index.settings.checkpoint)
        return checkpoint.parent.name if checkpoint.name.startswith("checkpoint_") else checkpoint.name

    @cached_property
    def folders(self) -> list[str]:
        """Folders of the indexed videos and their parent folders, by name; at most 1,000."""
        names = {
            parent.as_posix()
            for video in pc.unique(self.index.windows["video_id"]).to_pylist()
            for parent in PurePosixPath(video).parents
        }
        return sorted(names - {"."})[:_MAX_FOLDERS]

    @cached_property
    def _tokenizer(self) -> Any:
        return build_tokenizer(self.index.model.config)

    @cached_property
    def _numbers(self) -> dict[tuple[str, float | None, float | None], int]:
        names = (self.index.windows[name].to_pylist() for name in ("path", "start_s", "end_s"))
        return {name: number for number, name in enumerate(zip(*names, strict=True))}

    def load(self) -> None:
        """Loads the model and the embeddings, so that the first query of a user is not slow."""
        self.answers("a video", 1, Filters(), distinct=True)

    def span(self, window: int) -> Span:
        """Returns video and times of a window, given its number.

        Raises:
            QueryError: if there is no such window.
        """
        if not 0 <= window < len(self.index):
            raise QueryError("There is no such window.")
        row = self.index.rows[window]
        return Span(Path(row["path"]), row["source"], row["start_s"], row["end_s"])

    def thumbnail(self, window: int) -> Path:
        """Returns the path of the thumbnail of a window; see `span`."""
        self.span(window)
        row = self.index.rows[window]
        return thumbnail_path(self.index.path, row["window_id"], row["source"])

    def number_of(self, judged: Judged) -> int | None:
        """Returns the number of the window that a verdict is about; None if the index does not have it."""
        return self._numbers.get((judged.path, judged.start_s, judged.end_s))

    def answers(self, query: str, top: int, filters: Filters, *, distinct: bool) -> list[Answer]:
        """Returns the best windows for a query among those that pass the filters."""
        _check(query)
        among = self._among(filters)
        if not among.any():
            return []
        return _MODEL.submit(self.index.search, query, top, distinct=distinct, among=among).result()

    def describe_cut(self, query: str) -> str | None:
        """Returns a sentence that says how much of a long query the model reads; None if it reads all of it."""
        return self.index.model.describe_cut(query)

    def doubts(self, best: float | None) -> dict[str, Any]:
        """Says whether probably nothing fits a query, given its best score.

        Returns:
            `nothing_fits`: None if the index has no threshold; `sentence`: how reliable this is, or why there is none.
        """
        calibration = self.index.calibration
        if not isinstance(calibration, Calibration):
            return {"nothing_fits": None, "sentence": str(calibration)}
        nothing = best is not None and calibration.nothing_fits(best)
        return {"nothing_fits": nothing, "sentence": str(calibration)}

    def moments(self, query: str, window: int) -> dict[str, Any]:
        """Computes the scores of all windows of one video, namely the video that a window is from.

        Returns:
            `windows`: number, score and times of each; `best`: numbers of the best ones that do not overlap.
        """
        self.span(window)
        rows = self.index.rows
        film = pc.equal(self.index.windows["video_id"], rows[window]["video_id"])
        among = film.combine_chunks().to_numpy(zero_copy_only=False)
        numbers = np.flatnonzero(among).tolist()
        of_film = _MODEL.submit(self._compare, query, numbers).result()
        scores = torch.full((len(rows),), -torch.inf)
        scores[numbers] = of_film
        best = self.index.rank(scores, _MOMENTS, distinct=True, among=among)
        windows = [
            {"window": number, "score": score} | {name: rows[number][name] for name in ("start_s", "end_s", "video_s")}
            for number, score in zip(numbers, of_film.tolist(), strict=True)
        ]
        return {"windows": windows, "best": [answer.window for answer in best]}

    def explain(self, query: str, window: int) -> tuple[Explanation, int]:
        """Explains the score of a window; also returns the number of its frames."""
        self.span(window)
        return _MODEL.submit(self._explain, query, window).result()

    def _explain(self, query: str, window: int) -> tuple[Explanation, int]:
        text, video = self._embed(query), self.index.embeddings([window])
        return explain(self.index.model, self._tokenizer, query, text, video), int(video.mask.sum())

    def _compare(self, query: str, numbers: list[int]) -> Float[Tensor, " some"]:
        """Returns the scores of some windows."""
        return self.index.model.similarity(self._embed(query), self.index.embeddings(numbers))[0].cpu()

    def _among(self, filters: Filters) -> Bool[np.ndarray, " windows"]:
        videos, lengths = self.index.windows["video_id"], self.index.windows["video_s"]
        among = pa.chunked_array([pa.array(np.ones(len(self.index), bool))])
        if folder := filters.folder.strip("/"):
            among = pc.or_(pc.equal(videos, folder), pc.starts_with(videos, f"{folder}/"))
        for limit, passes in ((filters.min_s, pc.greater_equal), (filters.max_s, pc.less_equal)):
            if limit is not None:
                among = pc.and_(among, passes(lengths, limit).fill_null(False))
        return among.combine_chunks().to_numpy(zero_copy_only=False)

    def _embed(self, query: str) -> Embeddings:
        """Embeds a query; keeps the embeddings of the last queries."""
        _check(query)
        if query not in self._texts:
            self._texts[query] = self.index.model.embed_texts([query])
            if len(self._texts) > _CACHED_QUERIES:
                self._texts.popitem(last=False)
        self._texts.move_to_end(query)
        return self._texts[query]


def _check(query: str) -> None:
    if not query.strip():
        raise QueryError("The query is empty: write a sentence that describes what to find.")
    if len(query) > MAX_CHARACTERS:
        raise QueryError(f"The query is longer than {MAX_CHARACTERS:,} characters: shorten it.")
