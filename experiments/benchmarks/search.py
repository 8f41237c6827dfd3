"""Compares FAISS with LanceDB as the source of candidates for search: recall, memory, disk and speed.

    pip install faiss-cpu lancedb
    python experiments/benchmarks/search.py [--windows 100000] [--queries 64] [--only NAME,...] [--folder FOLDER]

Windows and captions are those of `waver.benchmarks.films`. Candidates are searched by the pooled vectors of
`waver.search.candidates` and reranked by the exact scores. Recall is that of the exact ten best windows among all windows.
Each library is built in one process and searched in another, so their memory is measured apart. FOLDER keeps the pooled
vectors and the exact scores, 1.3 GB for a million windows, and a later call uses them again.
"""

import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import pyarrow as pa
import torch
import typer

from waver.benchmarks.films import World
from waver.evaluation.token_wise import token_wise
from waver.model.interaction import INTERACTIONS
from waver.search.candidates import pool_texts, pool_windows
from waver.tools.memory import peak_rss

COUNTS = (30, 100, 300, 1000, 3000)
"""Numbers of candidates."""
TOP = 10
WTI = INTERACTIONS["wti"]
CHUNK = 20
"""Films that are processed at a time."""

Search = Callable[[np.ndarray, int], np.ndarray]
"""(query (D,), number) -> numbers of the windows, the best first."""


def faiss_ways(number: int) -> dict[str, tuple[str, dict[str, int]]]:
    """Returns name -> (how to build the index, how to search it)."""
    lists = lists_of(number)
    return {
        "faiss flat": ("Flat", {}),
        "faiss SQ8": ("SQ8", {}),
        "faiss IVF flat, 16 lists": (f"IVF{lists},Flat", {"nprobe": 16}),
        "faiss IVF SQ8, 16 lists": (f"IVF{lists},SQ8", {"nprobe": 16}),
        "faiss IVF SQ8, 64 lists": (f"IVF{lists},SQ8", {"nprobe": 64}),
        "faiss IVF PQ64, 64 lists": (f"IVF{lists},PQ64", {"nprobe": 64}),
        "faiss HNSW32 SQ8, 1024": ("HNSW32,SQ8", {"efSearch": 1024}),
    }


def lance_ways(number: int) -> dict[str, tuple[dict[str, Any], dict[str, int]]]:
    """Returns name -> (how to build the index, how to search it)."""
    lists = lists_of(number)
    pq = {"index_type": "IVF_PQ", "num_partitions": lists, "num_sub_vectors": 64}
    return {
        "lancedb IVF_PQ, 64 lists": (pq, {"nprobes": 64}),
        "lancedb IVF_PQ, 64 lists, refined x 2": (pq, {"nprobes": 64, "refine_factor": 2}),
        "lancedb IVF_HNSW_SQ, 3000": (
            {"index_type": "IVF_HNSW_SQ", "num_partitions": max(1, number // 100_000)},
            {"nprobes": 16, "ef": 3000},
        ),
    }


def lists_of(number: int) -> int:
    """Returns the number of lists of an inverted file."""
    return 2 ** round(np.log2(4 * number**0.5))


def build_faiss(way: tuple[str, dict[str, int]], vectors: np.ndarray, folder: Path) -> None:
    """Builds an index and writes it."""
    import faiss

    index = faiss.index_factory(vectors.shape[1], way[0], faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        size = min(len(vectors), 40 * lists_of(len(vectors)))
        sample = np.random.default_rng(0).choice(len(vectors), size, replace=False)
        index.train(vectors[np.sort(sample)].astype(np.float32))
    for first in range(0, len(vectors), 50_000):
        index.add(vectors[first : first + 50_000].astype(np.float32))
    faiss.write_index(index, str(folder / "index.faiss"))


def open_faiss(way: tuple[str, dict[str, int]], folder: Path) -> Search:
    """Opens the index, mapped into memory where FAISS can."""
    import faiss

    index = faiss.read_index(str(folder / "index.faiss"), faiss.IO_FLAG_MMAP)
    for name, value in way[1].items():
        faiss.ParameterSpace().set_index_parameter(index, name, value)
    return lambda query, number: index.search(query[None], number)[1][0]


def build_lance(way: tuple[dict[str, Any], dict[str, int]], vectors: np.ndarray, folder: Path) -> None:
    """Builds a table and its index."""
    import lancedb

    def batches():
        for first in range(0, len(vectors), 50_000):
            part = vectors[first : first + 50_000].astype(np.float32)
            column = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), part.shape[1])
            yield pa.record_batch([pa.array(range(first, first + len(part))), column], names=["number", "vector"])

    schema = pa.schema({"number": pa.int64(), "vector": pa.list_(pa.float32(), vectors.shape[1])})
    table = lancedb.connect(folder).create_table("windows", batches(), schema=schema)
    table.create_index(metric="dot", **way[0])


def open_lance(way: tuple[dict[str, Any], dict[str, int]], folder: Path) -> Search:
    """Opens the table."""
    import lancedb

    table = lancedb.connect(folder).open_table("windows")

    def search(query: np.ndarray, number: int) -> np.ndarray:
        asked = table.search(query).distance_type("dot").select(["number"]).limit(number)
        for name, value in way[1].items():
            asked = getattr(asked, name)(value)
        return asked.to_arrow()["number"].to_numpy()

    return search


def prepare(folder: Path, number: int, num_queries: int) -> None:
    """Writes the pooled vectors of windows and captions, and the exact scores."""
    if (folder / "queries.npy").exists():
        return
    world, at, started = World(), 0, time.perf_counter()
    text = world.captions(num_queries, number)
    pooled = np.lib.format.open_memmap(folder / "windows.npy", "w+", np.float16, (number, world.width))
    scores = np.lib.format.open_memmap(folder / "scores.npy", "w+", np.float32, (num_queries, number))
    films = []
    for film in world.films(number):
        films.append(film)
        if len(films) == CHUNK or at + sum(map(len, films)) == number:
            video = world.weigh(torch.from_numpy(np.concatenate(films)))
            some = slice(at, at + len(video))
            pooled[some], scores[:, some] = pool_windows(WTI, video).numpy(), token_wise(text, video).numpy()
            at, films = some.stop, []
    np.save(folder / "queries.npy", pool_texts(WTI, text).numpy())
    print(f"{number:,} windows and {num_queries} exact searches: {time.perf_counter() - started:.0f} s", flush=True)


def build(name: str, data: Path, folder: Path, found: Any) -> None:
    """Builds what `name` says; runs in a process of its own."""
    vectors = np.load(data / "windows.npy", mmap_mode="r")
    ways, make = (faiss_ways, build_faiss) if name.startswith("faiss") else (lance_ways, build_lance)
    started = time.perf_counter()
    make(ways(len(vectors))[name], vectors, folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    found.put({"build_s": time.perf_counter() - started, "build_gb": peak_rss() / 1e9, "disk_gb": size / 1e9})


def search(name: str, data: Path, folder: Path, found: Any) -> None:
    """Searches what was built; runs in a process of its own."""
    scores, queries = np.load(data / "scores.npy", mmap_mode="r"), np.load(data / "queries.npy")
    best = [set(np.argsort(-row, kind="stable")[:TOP].tolist()) for row in scores]
    before = psutil.Process().memory_info().rss
    ways, opened = (faiss_ways, open_faiss) if name.startswith("faiss") else (lance_ways, open_lance)
    started = time.perf_counter()
    ask = opened(ways(scores.shape[1])[name], folder)
    result: dict[str, Any] = {"open_s": time.perf_counter() - started}
    for query in queries:
        ask(query, TOP)
    for count in COUNTS:
        times, recalls = [], []
        for query, wanted in zip(queries, best, strict=True):
            started = time.perf_counter()
            numbers = ask(query, count)
            times.append(1000 * (time.perf_counter() - started))
            recalls.append(len(wanted & set(numbers.tolist())) / TOP)
        p50, p95 = np.percentile(times, [50, 95])
        result[f"{count}"] = {"recall": statistics.mean(recalls), "p50_ms": p50, "p95_ms": p95}
    result["memory_gb"] = (psutil.Process().memory_info().rss - before) / 1e9
    found.put(result)


def alone(work: Callable[..., None], *arguments: Any) -> dict[str, Any]:
    """Runs a function in a new process; returns what it found."""
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    process = context.Process(target=work, args=(*arguments, found))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{work.__name__} of {arguments[0]} has failed")
    return found.get()


def main(
    windows: int = 100_000,
    queries: int = 64,
    only: str = "",
    folder: Annotated[Path | None, typer.Option(help="Where pooled vectors and scores are kept.")] = None,
) -> None:
    """Prints one row for each way."""
    asked = [name.strip() for name in only.split(";") if name.strip()]
    names = [name for name in (*faiss_ways(windows), *lance_ways(windows)) if not asked or name in asked]
    with nullcontext(folder) if folder else tempfile.TemporaryDirectory() as place:
        data = Path(place) / f"{windows}"
        data.mkdir(parents=True, exist_ok=True)
        prepare(data, windows, queries)
        print("| way | build, s | peak, GB | disk, GB | open, s | memory, GB |" + "".join(f" {n:,} |" for n in COUNTS))
        print("|---" * (6 + len(COUNTS)) + "|")
        for name in names:
            with tempfile.TemporaryDirectory(dir=data) as built:
                row = alone(build, name, data, Path(built)) | alone(search, name, data, Path(built))
            print(
                f"| {name} | "
                + " | ".join(f"{row[key]:.2f}" for key in ("build_s", "build_gb", "disk_gb", "open_s", "memory_gb"))
                + " | "
                + " | ".join("{recall:.1%}, {p50_ms:.1f} / {p95_ms:.1f} ms".format(**row[str(n)]) for n in COUNTS)
                + " |",
                flush=True,
            )
            with (data / "rows.jsonl").open("a") as file:
                file.write(json.dumps({"way": name} | row) + "\n")


if __name__ == "__main__":
    typer.run(main)
