"""Measures exact ranking at the size of the MSVD test split (27,763 captions, 670 clips), in bounded memory.

    python experiments/benchmarks/evaluation.py [--annotations MSVD_FOLDER] [--chunk-size 128] [--repeats 5] [--also]

Embeddings are random, with width 512, 32 words and 12 frames. Captions are grouped by clip as in MSVD if its annotations are
given, else in groups of the same number, smallest and largest size. The benchmark times the part of `waver evaluate` that
follows embedding: `rank_tiles` over `token_wise`, in both directions. Alternately it times the matrix product alone, without
maxima, which is a lower bound. `--also` times the top ten clips of each query, and QB-Norm with one bank caption per
query. CPU seconds of all cores are printed beside wall-clock seconds, which depend on other work of the machine. Peak
memory is the largest resident size minus the resident size before ranking, when the embeddings are already in memory.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import typer
from torch import Tensor

from waver.evaluation.ranking import rank_tiles, row_chunks
from waver.evaluation.rescoring import build_query_bank, inverted_softmax_ranks
from waver.evaluation.token_wise import token_wise
from waver.model.embeddings import Embeddings
from waver.model.interaction import uniform_weights

NUM_CLIPS, NUM_TEXTS, LEAST, MOST = 670, 27_763, 21, 81
WIDTH, NUM_WORDS, NUM_FRAMES = 512, 32, 12


def main(
    annotations: Path | None = None, chunk_size: int = 128, repeats: int = 5, threads: int = 2, also: bool = False
) -> None:
    """Prints the medians of seconds and peak memory."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    clip_of_text = torch.repeat_interleave(torch.arange(NUM_CLIPS), _sizes(annotations))
    available = torch.ones(NUM_CLIPS, dtype=torch.bool)
    text, video = _random(NUM_TEXTS, NUM_WORDS), _random(NUM_CLIPS, NUM_FRAMES)

    def tile(rows: slice, columns: slice) -> Tensor:
        return token_wise(text[rows], video[columns])

    def product() -> None:
        for rows in row_chunks(clip_of_text, chunk_size):
            text.values[rows].flatten(0, 1) @ video.values.flatten(0, 1).T

    def plain(top_k: int = 0) -> None:
        rank_tiles(tile, clip_of_text, available, chunk_size=chunk_size, top_k=top_k)

    def qb_norm() -> None:
        bank = build_query_bank(tile, NUM_TEXTS, available, beta=20.0, top_k=1, chunk_size=chunk_size)
        inverted_softmax_ranks(tile, bank, clip_of_text, available, beta=20.0, chunk_size=chunk_size)

    print(f"{threads} threads, tiles of {chunk_size}; the embeddings take {_mib(text) + _mib(video):.0f} MiB")
    works = {"ranks, both directions": plain, "matrix product alone": product}
    if also:
        works |= {"ranks and the first 10 clips": lambda: plain(10), "QB-Norm": qb_norm}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            found[name].append(_measured(work))
    for name, measured in found.items():
        seconds, cpu_s, peak = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"{name}: {seconds:.1f} s, {cpu_s:.1f} s of CPU, peak {peak:.0f} MiB beside the embeddings")


def _sizes(annotations: Path | None) -> Tensor:
    """Returns the number of captions of each clip."""
    if annotations:
        captions = json.loads((annotations / "captions_msvd.json").read_text(encoding="utf-8"))
        clips = sorted((annotations / "test_list.txt").read_text(encoding="utf-8").split())
        sizes = torch.tensor([len(captions[clip]) for clip in clips])
    else:
        sizes = (torch.randn(NUM_CLIPS) * 9 + NUM_TEXTS / NUM_CLIPS).round().clamp(LEAST + 2, MOST - 2).long()
        sizes[0], sizes[1] = LEAST, MOST
        difference = NUM_TEXTS - int(sizes.sum())
        sizes[2 : 2 + abs(difference)] += 1 if difference > 0 else -1
    assert (len(sizes), int(sizes.sum()), int(sizes.min()), int(sizes.max())) == (NUM_CLIPS, NUM_TEXTS, LEAST, MOST)
    return sizes


def _random(number: int, length: int) -> Embeddings:
    """Makes random embeddings, of which at least half of the positions are valid."""
    mask = torch.arange(length) < torch.randint(length // 2, length + 1, (number, 1))
    return Embeddings(torch.randn(number, length, WIDTH), mask, uniform_weights(mask))


def _mib(embeddings: Embeddings) -> float:
    return sum(t.nbytes for t in (embeddings.values, embeddings.mask, embeddings.weights)) / 2**20


@torch.no_grad()
def _measured(work: Callable[[], None]) -> tuple[float, float, float]:
    """Returns (seconds, CPU seconds, peak MiB above the resident size before)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start, cpu_start = _resident("VmRSS"), time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu_start, _resident("VmHWM") - before


def _resident(field: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


if __name__ == "__main__":
    typer.run(main)
