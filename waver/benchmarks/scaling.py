"""How cost grows with clips, phrases and workers: processor time at several sizes, and a fit for larger ones.

The fit is a + b n, by least squares of relative errors, with a, b >= 0. It is a fit, not a measurement: beyond the largest
measured size it assumes that nothing else becomes the limit, such as memory.
"""

import math
import statistics
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from waver.benchmarks.context import Context
from waver.benchmarks.ranking import random_pairs
from waver.benchmarks.synthetic import clip_name, experiment, make_captions, make_clips, random_vectors
from waver.benchmarks.table import Row
from waver.benchmarks.timing import format_number, take_turns
from waver.data.clip_store import ClipStore
from waver.data.embedding_store import EmbeddingSettings, EmbeddingStore, create_embeddings, mark_complete, write_items
from waver.evaluation.token_wise import token_wise
from waver.knowledge.teacher import match_clips
from waver.model.embeddings import Embeddings
from waver.model.interaction import wti
from waver.training import parallel
from waver.training.plan import plan_epoch

LARGE = 10_000_000
"""Number of clips for which the fit is stated."""
_ITEMS_PER_BLOCK, _WIDTH, _INDEXED = 10_000, 16, 10_000
_CAPTIONS, _PHRASES, _NUM_MATCHES, _BATCH = 16, 8192, 30, 128
_BYTES = 4


def measure_scaling(context: Context) -> list[Row]:
    """Measures processor seconds in each size."""
    return [*_clips(context), *_phrases(context), *_workers(context)]


def _clips(context: Context) -> Iterator[Row]:
    """Yields the cost of what depends on the number of clips."""
    counts, width = context.sizes.scaling_clips, context.sizes.width
    works: dict[str, Callable[[int], Callable[[], object]]] = {
        "plan of an epoch, one caption a clip": lambda number: _plan(number, context),
        "opening an embedding store": lambda number: _store(context.folder, number),
        f"ranking the clips for {_CAPTIONS} captions (wti)": lambda number: _search(number, context),
        f"matching with {_PHRASES:,} phrases": lambda number: _match(number, _PHRASES, width),
    }
    for work, prepare in works.items():
        yield from _grow(work, "clips", counts, prepare, context.repeats, LARGE)
    yield from _indexes(context)


def _indexes(context: Context) -> Iterator[Row]:
    """Yields the memory, in each process, of the index of a clip store and of an embedding store."""
    number = min(context.sizes.scaling_clips[-1], _INDEXED)
    make_clips(context.folder / "index", number, size=8, max_frames=1)
    _store(context.folder / "index", number)
    works: dict[str, Callable[[], object]] = {
        "a clip store": lambda: ClipStore(context.folder / "index"),
        "an embedding store": lambda: (
            len(opened := EmbeddingStore(context.folder / "index" / f"embeddings-{number}")) and opened
        ),
    }
    for name, work in works.items():
        tracemalloc.start()
        kept = work()
        size = tracemalloc.get_traced_memory()[0] / number
        tracemalloc.stop()
        if isinstance(kept, ClipStore):
            size += kept.ledger.nbytes / number  # Arrow's memory is not Python's
        gib = size * LARGE / 2**30
        note = f"{gib:.1f} GiB for {LARGE:,} clips (computed), in each process"
        yield Row(f"memory of the index of {name}", f"{number:,} clips", "bytes a clip", (size,), note=note)


def _phrases(context: Context) -> Iterator[Row]:
    counts, width = context.sizes.scaling_phrases, context.sizes.width
    yield from _grow(
        f"matching {_BATCH} clips",
        "phrases",
        counts,
        lambda number: _match(_BATCH, number, width),
        context.repeats,
        10**6,
    )


def _grow(
    work: str,
    unit: str,
    counts: Sequence[int],
    prepare: Callable[[int], Callable[[], object]],
    repeats: int,
    large: int,
) -> Iterator[Row]:
    """Yields a row for each size, and one for the fit at a large size.

    Args:
        work: name of the work.
        unit: what is counted.
        counts: sizes that are measured.
        prepare: makes the work of a size.
        repeats: turns of each size.
        large: size for which the fit is stated.
    """
    medians = []
    for number in counts:
        timing = take_turns({work: prepare(number)}, repeats)[work]
        medians.append(statistics.median(timing.cpu_s))
        yield Row(work, f"{number:,} {unit}", "CPU-s", tuple(timing.cpu_s))
    fixed, slope = fit_line(counts, medians)
    error = max(abs(fixed + slope * n - s) / s for n, s in zip(counts, medians, strict=True))
    yield Row(
        work,
        f"{large:,} {unit} (fit)",
        "CPU-s",
        (fixed + slope * large,),
        note=f"{format_number(fixed)} s + {format_number(slope * 1e6)} us each; misses the measured by {error:.0%} at most",
    )


def fit_line(counts: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Fits seconds = a + b n with a, b >= 0, by least squares of relative errors; returns (a, b)."""
    n, s = np.array(counts, float), np.array(seconds, float)
    design = np.stack([1 / s, n / s], axis=1)
    fixed, slope = np.linalg.lstsq(design, np.ones(len(n)), rcond=None)[0]
    if slope < 0:  # no growth
        return float(s.mean()), 0.0
    if fixed < 0:
        ratio = n / s
        return 0.0, float(ratio.sum() / (ratio**2).sum())
    return float(fixed), float(slope)


def _plan(number: int, context: Context) -> Callable[[], object]:
    config, captions = experiment(context.folder, {}), make_captions(number, 1, max_words=context.sizes.max_words)
    return lambda: plan_epoch(config, captions, np.arange(number), epoch=0)


def _store(folder: Path, number: int) -> Callable[[], object]:
    """Returns a function that opens a store of so many clips and looks one up; each has one small frame."""
    path = folder / f"embeddings-{number}"
    settings = EmbeddingSettings("frames", _WIDTH, "fp16", "random", {})
    create_embeddings(path, settings)
    values = np.zeros((1, _WIDTH), np.float32)
    for first in range(0, number, _ITEMS_PER_BLOCK):
        ids = range(first, min(first + _ITEMS_PER_BLOCK, number))
        write_items(path, settings, [(clip_name(i), "block", values) for i in ids])
    mark_complete(path)
    return lambda: EmbeddingStore(path).read([(clip_name(number - 1), "block")], 1)


def _search(number: int, context: Context) -> Callable[[], object]:
    """Returns a function that compares captions with so many clips; a block of clips stands for all of them."""
    sizes, block = context.sizes, 1000
    text, _ = random_pairs(_CAPTIONS, sizes.width, max_words=sizes.max_words, max_frames=sizes.max_frames)
    _, video = random_pairs(min(block, number), sizes.width, max_words=sizes.max_words, max_frames=sizes.max_frames)

    def search() -> None:
        for _ in range(math.ceil(number / block)):
            token_wise(text, video)

    return search


def _match(num_clips: int, num_phrases: int, width: int) -> Callable[[], object]:
    clips, phrases = random_vectors(num_clips, width, seed=11), random_vectors(num_phrases, width, seed=12)
    return lambda: match_clips(clips, phrases, _NUM_MATCHES)


def _workers(context: Context) -> Iterator[Row]:
    """Yields the cost, for one worker, of comparing the pairs of a global batch, forward and backward.

    A worker compares its captions with all clips, and its clips with all captions. The conventional way is the full matrix
    on each worker. What the workers exchange is computed from the shapes.
    """
    sizes, pairs = context.sizes, context.sizes.scaling_pairs
    text, video = random_pairs(pairs, sizes.width, max_words=sizes.max_words, max_frames=sizes.max_frames)
    exchanged = 2 * pairs * (sizes.max_words + sizes.max_frames) * sizes.width * _BYTES
    work = f"comparing a global batch of {pairs} pairs, one worker's part, forward and backward"
    whole = _compare([(text, video)])
    for number in sizes.scaling_workers:
        own = parallel.shard(pairs, 0, number)
        parts = [(text[own], video), (text, video[own])] if number > 1 else [(text, video)]
        found = take_turns({"own": _compare(parts), "whole": whole}, context.repeats)
        received = exchanged * (number - 1) / number
        ratios = tuple(b / a for a, b in zip(found["own"].cpu_s, found["whole"].cpu_s, strict=True))
        yield Row(
            work,
            f"{number} workers" if number > 1 else "1 worker",
            "CPU-s",
            tuple(found["own"].cpu_s),
            ratios=ratios,
            reference="the full matrix on each worker",
            note=f"{received / 2**20:.1f} MiB of embeddings and gradients received in a step (computed)",
        )


def _compare(parts: Sequence[tuple[Embeddings, Embeddings]]) -> Callable[[], object]:
    def compare() -> None:
        for text, video in parts:
            words, frames = (items.values.detach().requires_grad_(True) for items in (text, video))
            both = Embeddings(words, text.mask, text.weights), Embeddings(frames, video.mask, video.weights)
            wti(*both).sum().backward()

    return compare
