"""Builds the inverted file that finds candidates, and measures their recall; see `waver.search.candidates`."""

import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from waver.model.embeddings import Embeddings
from waver.model.interaction import Interaction
from waver.search.candidates import Candidacy, Candidates, import_faiss, manifest_of, pool_texts, pool_windows
from waver.tools.files import write_json

logger = logging.getLogger(__name__)

TARGET = 0.99
"""Recall that is good enough: no more candidates or lists are tried."""
_NUM_CANDIDATES = (1000, 3000)
_NUM_SEARCHED = (16, 64, 256)
"""Numbers of candidates and of lists to read that are tried, the cheapest first."""
_TOP = 10
_VECTORS_PER_LIST = 40
"""Vectors per list that the centroids are trained on; FAISS warns below 39."""
_ADDED = 65_536
"""Vectors that are added to the file at a time."""


@dataclass(frozen=True)
class Queries:
    """Queries that the recall is measured with."""

    text: Embeddings | None
    """None if the recall is not measured."""
    about: str
    """See `Candidacy.queries`."""


def build_candidates(
    folder: Path,
    windows: str,
    num_windows: int,
    chunks: Iterable[Embeddings],
    interaction: Interaction,
    queries: Queries,
    similarity: Callable[[Embeddings, Embeddings], Float[Tensor, "T V"]],
) -> Candidacy:
    """Builds the inverted file of an index from the embeddings of its windows, which are read once.

    It chooses the smallest numbers of candidates and of lists to read whose recall reaches `TARGET`, or the largest ones if
    none does. While it builds, the vectors of all windows are in a temporary file, 2 bytes per value. If the command is
    killed, the former inverted file stays in use.

    Args:
        folder: folder of the index.
        windows: see `waver.search.vectors.windows_digest`.
        num_windows: number of windows.
        chunks: embeddings of the windows, in the order of their numbers.
        interaction: interaction of the model.
        queries: queries to measure the recall with.
        similarity: computes the exact similarity of texts and windows.

    Returns:
        How candidates are found, with their recall.

    Raises:
        SearchError: if FAISS is not installed.
        OSError: if the files cannot be written.
    """
    place = folder / "candidates"
    place.mkdir(parents=True, exist_ok=True)
    for old in place.glob("*.part"):  # of a command that was killed
        old.unlink()
    name = uuid.uuid4().hex[:12]
    part = place / f"{name}.vectors.part"
    try:
        best = _BestWindows(queries.text, similarity)
        vectors = _pool(part, num_windows, chunks, interaction, best)
        index = _fill(vectors)
        candidacy = Candidacy(num_windows, index.nlist, _NUM_SEARCHED[0], _NUM_CANDIDATES[0], None, queries.about)
        if queries.text is not None:
            asked = pool_texts(interaction, queries.text).cpu().numpy()
            candidacy = _tune(Candidates(index, candidacy), asked, best.numbers)
        _write(place, name, index, windows, candidacy)
    finally:
        part.unlink(missing_ok=True)
    return candidacy


class _BestWindows:
    """Finds the best windows of some queries by exact search, while the windows are read chunk by chunk."""

    def __init__(self, text: Embeddings | None, similarity: Callable[[Embeddings, Embeddings], Tensor]):
        self._text, self._similarity = text, similarity
        size = (0 if text is None else len(text), 0)
        self._scores, self._numbers, self._seen = torch.empty(size), torch.empty(size, dtype=torch.int64), 0

    def see(self, video: Embeddings) -> None:
        """Compares the next chunk of windows with the queries."""
        if self._text is not None:
            scores = torch.cat([self._scores, self._similarity(self._text, video).cpu()], dim=1)
            new = torch.arange(self._seen, self._seen + len(video)).expand(len(scores), -1)
            numbers = torch.cat([self._numbers, new], dim=1)
            self._scores, places = scores.topk(min(_TOP, scores.shape[1]), dim=1)
            self._numbers = numbers.gather(1, places)
        self._seen += len(video)

    @property
    def numbers(self) -> Int64[np.ndarray, "Q top"]:
        """Numbers of the best windows of each query so far."""
        return self._numbers.numpy()


def _pool(
    path: Path, num_windows: int, chunks: Iterable[Embeddings], interaction: Interaction, best: _BestWindows
) -> np.ndarray:
    """Writes the vectors of all windows to a file, which it returns mapped into memory."""
    vectors, start = None, 0
    for video in chunks:
        pooled = pool_windows(interaction, video).cpu().numpy()
        if vectors is None:
            vectors = np.memmap(path, np.float16, "w+", shape=(num_windows, pooled.shape[1]))
        vectors[start : start + len(pooled)] = pooled
        start += len(pooled)
        best.see(video)
    assert vectors is not None, "an index has windows"
    assert start == num_windows, "every window has its vector"
    return vectors


def _fill(vectors: np.ndarray) -> Any:
    """Returns an inverted file of all vectors, in memory."""
    faiss = import_faiss()
    number, width = vectors.shape
    num_lists = max(1, min(2 ** round(np.log2(4 * number**0.5)), number // _VECTORS_PER_LIST))
    logger.info(f"building the inverted file for approximate search: {number:,} windows in {num_lists:,} lists")
    index = faiss.index_factory(width, f"IVF{num_lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    sample = np.random.default_rng(0).choice(number, min(number, num_lists * _VECTORS_PER_LIST), replace=False)
    index.train(vectors[np.sort(sample)].astype(np.float32))
    for first in range(0, number, _ADDED):
        index.add(vectors[first : first + _ADDED].astype(np.float32))
    return index


def _tune(candidates: Candidates, queries: Float32[np.ndarray, "Q D"], best: Int64[np.ndarray, "Q top"]) -> Candidacy:
    """Chooses the number of candidates, and the number of lists to read."""
    candidacy = candidates.candidacy
    for num_candidates in _NUM_CANDIDATES:
        for num_searched in _NUM_SEARCHED:
            found = candidates.find(queries, num_candidates, num_searched=num_searched)
            share = recall(found, best)
            candidacy = replace(candidacy, num_searched=num_searched, num_candidates=num_candidates, recall=share)
            if share >= TARGET:
                return candidacy
    return candidacy


def recall(found: Sequence[Int64[np.ndarray, " _"]], best: Int64[np.ndarray, "Q top"]) -> float:
    """Returns the share of the best windows (`best`) of each query that are among its candidates (`found`), on average."""
    return float(np.mean([np.isin(right, numbers).mean() for numbers, right in zip(found, best, strict=True)]))


def _write(place: Path, name: str, index: Any, windows: str, candidacy: Candidacy) -> None:
    """Replaces the inverted file of an index; the former one stays in use until the manifest names the new one."""
    before = list(place.glob("*.faiss"))
    path = place / f"{name}.faiss"
    part = place / f"{name}.faiss.part"
    import_faiss().write_index(index, str(part))
    part.rename(path)
    write_json(place / "manifest.json", manifest_of(path, windows, candidacy))
    for old in before:
        old.unlink()
