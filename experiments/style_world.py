"""Compares ways of using knowledge on writing styles that training never saw, over several seeds.

    python experiments/style_world.py [--seeds 10] [--output style_world] [--set KEY=VALUE]

Renders the data of the quickstart, decodes it, makes the dictionary and matches it. Then trains `style_world.yaml` with
each entry of WAYS and each seed, as Ray tasks with one CPU each, and evaluates on test. The seed determines initial weights
and the order of batches, and is the same for all ways, so that differences are paired. Results are appended to
OUTPUT/runs.jsonl, from which an interrupted experiment resumes.

Intervals of a difference are 95 % intervals of Student's t (`pip install -e '.[robustness]'` for scipy): over seeds and test
clips together (variance between data sets), and over seeds alone (variance of training).
"""

import json
import logging
from collections.abc import Iterator
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
import typer

from waver.config import ExperimentConfig, load_config, parse_overrides
from waver.data.batch import Batch
from waver.data.clip_store import ClipStore
from waver.evaluation.evaluate import evaluate
from waver.evaluation.intervals import MeanInterval, crossed_interval, t_interval
from waver.knowledge.store import Knowledge
from waver.on_ray.cluster.connection import connect
from waver.on_ray.stages.ingest import run_ingest
from waver.on_ray.stages.match import run_match
from waver.quickstart.dictionary import extract_or_copy_dictionary
from waver.quickstart.weights import write_backbone
from waver.quickstart.world import SEEN_STYLES, UNSEEN_STYLES, WORLD, render_world
from waver.runs.folder import SELECTION_METRIC
from waver.runs.inputs import load_captions, open_knowledge, open_store
from waver.tools.progress import track_progress
from waver.training.build import build_training
from waver.training.plan import plan_epoch, training_rows
from waver.training.step import make_batch, train_epoch

_VISION_ONLY = {"knowledge.at_inference": False}
_DISTILL = {"loss.distill": 4.0, "loss.temperature": 8.0}
WAYS: dict[str, dict[str, Any]] = {
    "(a) no knowledge": {"knowledge.top_k": 0},
    "(b) fusion as released, K = 1": {"knowledge.top_k": 1},
    "(c) fusion, K = 10": {},
    "(d) (c) + distillation, vision only": {**_VISION_ONLY, **_DISTILL},
    "(e) + knowledge loss alone, vision only": {**_VISION_ONLY, "knowledge.fusion": "none", "loss.knowledge": 0.2},
    "(e) distillation in place of captions, vision only": {**_VISION_ONLY, **_DISTILL, "loss.contrastive": 0.0},
    "(e) all losses, vision only": {**_VISION_ONLY, **_DISTILL, "loss.knowledge": 0.2},
}
"""Row of the table -> settings that it changes in style_world.yaml."""


def main(
    seeds: int = 10,
    output: Path = Path("style_world"),
    overrides: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE")] = [],  # noqa: B006 (typer's way)
) -> None:
    """Runs the experiment and prints its table in Markdown."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    places = {
        "data.annotations": str(output / "world" / "captions.jsonl"),
        "data.videos": str(output / "world"),
        "model.weights": str(output.absolute() / "backbone.safetensors"),
        "storage.path": str(output),
    }
    common = places | parse_overrides(overrides)
    path = Path(__file__).with_suffix(".yaml")
    config = load_config(path, common)
    render_world(output / "world", **WORLD)
    write_backbone(output / "backbone.safetensors")
    with connect() as where:
        print(where)
        run_ingest(config)
        extract_or_copy_dictionary(config)
        run_match(config)
        captions = load_captions(config)
        store = open_store(config, captions)
        known = open_knowledge(config, captions, store, ("train", "validation", "test")).manifest
        made_from = (
            f"teacher {known['teacher']}, dictionary {known['dictionary']['digest']}, clips {store.manifest['digest']}"
        )
        asked = {
            (way, seed): load_config(path, common | changes | {"seed": seed})
            for seed in range(seeds)
            for way, changes in WAYS.items()
        }
        results = dict(_run_all(asked, captions, store.path, made_from, output / "runs.jsonl"))
    of_way = {way: [results[way, seed] for seed in range(seeds)] for way in WAYS}
    print(table(of_way))
    print("\n".join(f"{way}: {shared_misses(runs)}" for way, runs in of_way.items()))


def _run_all(
    asked: dict[tuple[str, int], ExperimentConfig], captions: pa.Table, store: Path, made_from: str, log: Path
) -> Iterator[tuple[tuple[str, int], dict]]:
    """Yields the result of each run, from the log if it has one, else from a Ray task."""
    rows = map(json.loads, log.read_text().splitlines()) if log.exists() else ()
    known = {(row["config"], row["made_from"]): row for row in rows}
    task, shared = ray.remote(num_cpus=1, max_retries=2)(run_once), ray.put(captions)
    waiting = {}
    for key, config in asked.items():
        if (config.digest(), made_from) in known:
            yield key, known[config.digest(), made_from]
        else:
            waiting[task.remote(config, shared, store)] = key
    finished = _as_they_end(list(waiting))
    for reference in track_progress(finished, doing="training", unit="runs", total=len(waiting), size=lambda _: 1):
        key = waiting[reference]
        row = {
            "way": key[0],
            "seed": key[1],
            "config": asked[key].digest(),
            "made_from": made_from,
            **ray.get(reference),
        }
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        yield key, row


def _as_they_end(references: list[ray.ObjectRef]) -> Iterator[ray.ObjectRef]:
    while references:
        (done, *_), references = ray.wait(references)
        yield done


def run_once(config: ExperimentConfig, captions: pa.Table, store_path: Path) -> dict[str, Any]:
    """Trains and tests one run in this process, with the functions that training workers call.

    Returns:
        Metrics on validation and test of the epoch that was best on validation, and for each test query its clip, its style
        and whether it is a hit at rank 1.
    """
    torch.set_num_threads(1)
    store = ClipStore(store_path)
    knowledge = Knowledge(config.knowledge_store) if config.uses_knowledge else None
    rows = training_rows(captions, store)
    plans = [plan_epoch(config, captions, rows, epoch=epoch) for epoch in range(config.train.epochs)]
    training = build_training(
        config,
        num_steps=sum(map(len, plans)),
        device=torch.device("cpu"),
        phrases=knowledge.phrase_embeddings() if knowledge else None,
    )

    def batches() -> Iterator[Batch]:
        for batch in (batch for plan in plans for batch in plan):
            clips = store.read(captions["clip_id"].take(batch).to_pylist())
            yield make_batch(captions, batch, clips, config, num_pairs=len(batch), knowledge=knowledge)

    stream, student, best = batches(), training.student, None
    for plan in plans:
        for _ in train_epoch(training, islice(stream, len(plan)), config):
            pass
        validation = evaluate(student, captions, store, config, split="validation", knowledge=knowledge).metrics
        if best is None or validation[SELECTION_METRIC] >= best["validation"][SELECTION_METRIC]:
            best = {"validation": validation, "epoch": training.epoch, "weights": deepcopy(student.state_dict())}
    student.load_state_dict(best.pop("weights"))
    evaluation = evaluate(student, captions, store, config, split="test", knowledge=knowledge)
    queries = captions.filter(pc.equal(captions["split"], "test"))
    queries = queries.sort_by([("clip_id", "ascending"), ("caption_index", "ascending")])  # the order of the ranks
    return best | {
        "metrics": evaluation.metrics,
        "clip_ids": queries["clip_id"].to_pylist(),
        "styles": queries["style"].to_pylist(),
        "hits": (evaluation.ranks.t2v <= 1).tolist(),
    }


def table(results: dict[str, list[dict]]) -> str:
    """Makes the table: R@1 on seen and unseen styles, mean and standard deviation over seeds, difference from the first row.

    The first interval of a difference is over seeds and clips, the second over seeds alone.
    """
    groups = {"seen": SEEN_STYLES, "unseen": UNSEEN_STYLES}
    hits = {way: {name: _hits(runs, styles) for name, styles in groups.items()} for way, runs in results.items()}
    first = hits[next(iter(hits))]
    lines = [
        "| | seen styles | difference (95 %) | unseen styles | difference (95 %) | video to text |",
        "|---|---|---|---|---|---|",
    ]
    for way, of_group in hits.items():
        cells = []
        for name, ours in of_group.items():
            by_seed = 100 * ours.mean(axis=1)
            cells.append(f"{by_seed.mean():.1f} ± {by_seed.std(ddof=1):.1f}")
            if ours is first[name]:
                cells.append("")
            else:
                differences = 100 * (ours - first[name])
                both, seeds_alone = crossed_interval(differences), t_interval(differences.mean(axis=1))
                cells.append(f"{both.mean:+.1f} ({_ends(both)}; {_ends(seeds_alone)})")
        v2t = np.array([run["metrics"]["v2t/R@1"] for run in results[way]])
        lines.append(f"| {way} | {' | '.join(cells)} | {v2t.mean():.1f} ± {v2t.std(ddof=1):.1f} |")
    return "\n".join(lines)


def _ends(interval: MeanInterval) -> str:
    return f"{interval.low:+.1f} to {interval.high:+.1f}"


def _hits(runs: list[dict], styles: tuple[str, ...]) -> np.ndarray:
    """Returns (seeds, clips): share of the captions of a clip in these styles that are a hit at rank 1."""
    rows = []
    for run in runs:
        clip_ids, inside = np.array(run["clip_ids"]), np.isin(run["styles"], styles)
        _, clip = np.unique(clip_ids[inside], return_inverse=True)
        rows.append(np.bincount(clip, np.array(run["hits"])[inside]) / np.bincount(clip))
    return np.array(rows)


def shared_misses(runs: list[dict]) -> str:
    """Counts misses in unseen styles, and how many of their clips at least three of the four seen styles miss too."""
    misses = shared = 0
    for run in runs:
        _, clip = np.unique(run["clip_ids"], return_inverse=True)
        seen, missed = np.isin(run["styles"], SEEN_STYLES), ~np.array(run["hits"])
        missed_in_seen = np.bincount(clip[seen], missed[seen])
        misses += (missed & ~seen).sum()
        shared += (missed_in_seen[clip[missed & ~seen]] >= len(SEEN_STYLES) - 1).sum()
    share = 100 * shared / misses
    return f"{misses / len(runs):.0f} misses in unseen styles, {share:.0f} % of them missed by seen styles too"


if __name__ == "__main__":
    typer.run(main)
