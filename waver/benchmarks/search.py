"""Measures search among many windows: time, memory and disk of an index, and the recall of its candidates.

Windows and captions are those of `waver.benchmarks.films`; the files are those that `waver index` writes, in fp16.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import torch

from waver.benchmarks.context import Context
from waver.benchmarks.films import WINDOWS_PER_FILM, World
from waver.benchmarks.table import Row, not_measured
from waver.data.embedding_store import EmbeddingSettings
from waver.evaluation.token_wise import PreparedClips, prepare_clips, token_wise
from waver.model.embeddings import Embeddings
from waver.model.interaction import INTERACTIONS
from waver.search.candidates import Candidates, has_faiss, open_candidates, pool_texts
from waver.search.candidates_writer import Queries, build_candidates
from waver.search.scoring import CACHED_FRACTION
from waver.search.vectors import Vectors, windows_digest, write_vectors
from waver.tools.memory import peak_rss

_CHUNK = 4096
_NUM_QUERIES, _NUM_EXACT = 64, 1
_NUM_ROWS = 16
"""Words of one matrix product, as many as search takes for one short caption; it takes more for longer captions."""
_WTI = INTERACTIONS["wti"]


def measure_search(context: Context) -> list[Row]:
    """Measures each step once, and each query once; medians and ranges are over queries."""
    number = context.sizes.search_windows
    work = f"search, {number:,} windows"
    if not has_faiss():
        return [not_measured(work, "candidates", "FAISS is not installed: pip install -e '.[search]'")]
    films = _Films(context.folder, World(context.sizes.width, context.sizes.max_frames), number)
    written_s = _seconds(films.write)
    opened_s = _seconds(films.open)
    text = films.world.captions(_NUM_QUERIES, number)
    built_s = _seconds(lambda: films.build(text))
    candidates = open_candidates(context.folder, films.digest)
    assert candidates is not None, "they have just been built"
    rows = [
        Row(work, "embeddings into one file", "s", (written_s,), note=_size(context.folder / "vectors")),
        Row(work, "opening the file", "s", (opened_s,)),
        Row(work, "building candidates", "s", (built_s,), note=_about(candidates, context.folder)),
    ]
    ways: dict[str, tuple[Callable[[Embeddings], object], int]] = {
        "query, candidates alone": (lambda one: films.candidates_of(candidates, one), _NUM_QUERIES),
        "query, candidates ranked exactly": (lambda one: films.rank(candidates, one), _NUM_QUERIES),
        "query, all windows from the disk": (films.scores, _NUM_EXACT),
    }
    if films.fits_memory:
        films.prepare()
        ways["query, all windows in memory"] = (films.scores_in_memory, _NUM_QUERIES)
    for way, (answer, num_queries) in ways.items():
        times = tuple(_seconds(partial(answer, text[i : i + 1])) for i in range(min(num_queries, len(text))))
        rows.append(Row(work, way, "s", times, note=f"p95 {1000 * np.percentile(times, 95):,.1f} ms"))
    return rows


class _Films:
    """An index of synthetic films, on which search is measured."""

    def __init__(self, folder: Path, world: World, number: int):
        self.folder, self.world = folder, world
        self.settings = EmbeddingSettings("windows", world.width, "fp16", "synthetic", {})
        names = [f"films/{i // WINDOWS_PER_FILM:05}.mp4@{i % WINDOWS_PER_FILM * 5}" for i in range(number)]
        self.windows = pa.table({"window_id": names, "source": ["a digest"] * number})
        self.digest = windows_digest(self.windows)
        self.vectors: Vectors | None = None
        self._prepared: list[PreparedClips] = []

    def write(self) -> None:
        """Writes the embeddings of all windows."""
        every = (window for film in self.world.films(len(self.windows)) for window in film)
        write_vectors(self.folder, self.settings, self.windows, every)

    def open(self) -> None:
        """Opens the embeddings, and reads the last window."""
        self.vectors = Vectors(self.folder, self.settings, self.windows)
        self.read([len(self.windows) - 1])

    def read(self, numbers: Sequence[int]) -> Embeddings:
        """Reads the embeddings of some windows, and computes the weights of their frames."""
        assert self.vectors is not None, "opened before"
        values, _ = self.vectors.read(numbers, self.world.num_frames)
        return self.world.weigh(torch.from_numpy(values))

    def chunks(self) -> Iterator[Embeddings]:
        """Yields the embeddings of all windows."""
        for first in range(0, len(self.windows), _CHUNK):
            yield self.read(range(first, min(first + _CHUNK, len(self.windows))))

    def build(self, text: Embeddings) -> None:
        """Builds the candidates, and measures their recall."""
        queries = Queries(text, f"{len(text)} synthetic captions")
        build_candidates(self.folder, self.digest, len(self.windows), self.chunks(), _WTI, queries, token_wise)

    def candidates_of(self, candidates: Candidates, text: Embeddings) -> list[int]:
        """Returns the candidates of one caption."""
        return candidates.find(pool_texts(_WTI, text).numpy())[0].tolist()

    def rank(self, candidates: Candidates, text: Embeddings) -> torch.Tensor:
        """Ranks the candidates of one caption by their exact scores."""
        return (
            token_wise(text, self.read(self.candidates_of(candidates, text)), _NUM_ROWS).sort(descending=True).indices
        )

    @property
    def fits_memory(self) -> bool:
        """Whether search keeps all windows in memory, see `waver.search.scoring`."""
        num_bytes = len(self.windows) * self.world.num_frames * self.world.width * 4
        return num_bytes <= CACHED_FRACTION * psutil.virtual_memory().available

    def prepare(self) -> None:
        """Reads all windows into memory, as the first search does."""
        self._prepared = [prepare_clips(windows) for windows in self.chunks()]

    def scores_in_memory(self, text: Embeddings) -> torch.Tensor:
        """Compares a caption with all windows in memory."""
        return torch.cat([token_wise(text, windows, _NUM_ROWS) for windows in self._prepared], dim=1)

    def scores(self, text: Embeddings) -> torch.Tensor:
        """Reads all windows from the disk, and compares a caption with them."""
        return torch.cat([token_wise(text, windows, _NUM_ROWS) for windows in self.chunks()], dim=1)


def _about(candidates: Candidates, folder: Path) -> str:
    peak = f"peak memory of the process {peak_rss() / 2**30:.1f} GiB"
    return f"{candidates.candidacy}; {candidates.candidacy.num_searched} lists; {_size(folder / 'candidates')}; {peak}"


def _size(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.iterdir()) / 2**30:.2f} GiB on the disk"


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
