"""`waver quickstart`: the stages of any experiment, one after the other, on a world that it renders itself.

It asks what waver is for: videos are captioned by a few writers, and searched by others too. The same student is trained
without knowledge, with it, and distilled from it.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.progress import Progress

from waver.config import ExperimentConfig
from waver.evaluation.metrics import chance
from waver.evaluation.protocols import Protocol
from waver.evaluation.tables import metrics_table, styles_table
from waver.knowledge.store import Knowledge
from waver.on_ray.cluster.capacity import local_cpus
from waver.on_ray.cluster.connection import connect
from waver.on_ray.stages.evaluate import run_evaluation
from waver.on_ray.stages.ingest import describe_failures, run_ingest
from waver.on_ray.stages.match import run_match
from waver.on_ray.stages.train import run_training
from waver.quickstart.dictionary import make_dictionary
from waver.quickstart.experiment import quickstart_config
from waver.quickstart.weights import write_backbone
from waver.quickstart.world import SEEN_STYLES, UNSEEN_STYLES, WORLD, render_world
from waver.runs.inputs import load_captions
from waver.tools.files import write_json
from waver.tools.memory import sample_peak_memory

logger = logging.getLogger(__name__)


RUNS: dict[str, dict[str, Any]] = {
    "without knowledge": {"name": "without-knowledge", "knowledge.top_k": 0},
    "with knowledge": {},
    "distilled": {
        "name": "distilled",
        "knowledge.at_inference": False,
        "loss.distill": 4.0,
        "loss.temperature": 8.0,
    },
}
"""Name in tables -> what it changes in experiment.yaml. Distilled is vision-only at inference. Chosen on validation."""


def run_quickstart(output: Path, *, workers: int, show_table: Callable[[object], None]) -> dict:
    """Renders, ingests, finds phrases, matches them, trains without knowledge, with it and distilled, evaluates.

    Args:
        output: folder that receives everything, results.json among it.
        workers: of DDP.
        show_table: is called with each table of metrics, and with the lines that describe the evaluation protocol.

    Returns:
        The content of results.json: metrics (of the run with knowledge, of all runs, and by style), chance, clips decoded
        and failed, size of the dictionary, seconds of each stage, peak memory.
    """
    output = output.absolute()
    logger.info(f"everything goes to {output}")
    configs = {name: quickstart_config(output, workers, overrides) for name, overrides in RUNS.items()}
    config = configs["with knowledge"]
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def stage(name: str) -> None:
        seconds[name] = time.perf_counter() - start - sum(seconds.values())

    with sample_peak_memory() as memory:
        _render(output / "world")
        stage("render")
        write_backbone(output / "backbone.safetensors")
        with connect(num_cpus=local_cpus(config)) as where:
            logger.info(where)
            report = run_ingest(config)
            stage("ingest")
            dictionary = make_dictionary(config)
            stage("vocabulary")
            knowledge = run_match(config)
            stage("match")
            logger.info(_example(config, knowledge))
            for run in configs.values():
                run_training(run)
            stage("train")
            results = {
                name: run_evaluation(run.run_folder, quickstart_config(output, 1, RUNS[name]), split="test")
                for name, run in configs.items()
            }
        stage("evaluate")
    found = _results(results, {"memory": memory.peak, "seconds": seconds, "total": time.perf_counter() - start})
    found |= {
        "clips": report.counts,
        "failures": report.reasons,
        "num_phrases": len(dictionary.phrases),
        "workers": workers,
        "config": config.digest(),
    }
    write_json(output / "results.json", found)
    _show(found, results, show_table)
    logger.info(
        f"{sum(report.reasons.values())} of {sum(report.counts.values())} clips could not be decoded, as was intended:"
    )
    logger.info(describe_failures(report))
    logger.info(", ".join(f"{name} {value:.0f} s" for name, value in found["seconds"].items()))
    logger.info(f"results: {output / 'results.json'}\nlook at the runs: waver board {config.run_folder.parent}")
    return found


def _render(folder: Path) -> None:
    """Renders the world, with a bar on a terminal."""
    logger.info("rendering the videos")
    console = Console(stderr=True)
    with Progress(*Progress.get_default_columns(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("rendering", total=None)
        render_world(folder, **WORLD, progress=lambda done, total: bar.update(task, completed=done, total=total))


def _example(config: ExperimentConfig, knowledge: Knowledge) -> str:
    """What the teacher says of one clip, beside its caption."""
    caption = next(row for row in load_captions(config).to_pylist() if not knowledge.unmatched_clips([row["clip_id"]]))
    best = knowledge.phrase_ids([caption["clip_id"]], 3)[0].tolist()
    return (
        f'"{caption["caption"]}"; the teacher, who sees only the video: {", ".join(knowledge.phrases[i] for i in best)}'
    )


def _results(results: dict[str, dict], measured: dict[str, Any]) -> dict[str, Any]:
    waver = results["with knowledge"]
    return {
        "protocol": waver["protocol"],
        "metrics": waver["metrics"],
        "metrics_of_runs": {name: result["metrics"] for name, result in results.items()},
        "chance": chance(waver["gallery_size"]),
        "styles": {name: result["styles"] for name, result in results.items()},
        "seen_styles": {name: _mean(result, SEEN_STYLES) for name, result in results.items()},
        "unseen_styles": {name: _mean(result, UNSEEN_STYLES) for name, result in results.items()},
        "gallery_size": waver["gallery_size"],
        "num_queries": waver["num_queries"],
        "num_missing_clips": waver["num_missing_clips"],
        "leaky": waver["leaky"],
        "seconds": measured["seconds"] | {"total": measured["total"]},
        "peak_memory_bytes": measured["memory"],
    }


def _mean(result: dict, styles: tuple[str, ...]) -> float:
    """Mean t2v/R@1 over some styles."""
    return mean(result["styles"][style]["t2v/R@1"] for style in styles)


def _show(found: dict, results: dict[str, dict], show_table: Callable[[object], None]) -> None:
    for line in Protocol(**found["protocol"]).lines():
        show_table(line)
    title = f"{found['num_queries']} captions in {found['gallery_size']} clips never seen in training"
    rows = {name: result["metrics"] for name, result in results.items()}
    show_table(metrics_table(title, rows | {"chance": found["chance"]}))
    columns = {
        name: {
            **{f"{style}, seen in training": result["styles"][style] for style in SEEN_STYLES},
            **{f"{style}, never seen": result["styles"][style] for style in UNSEEN_STYLES},
            "mean of the seen": {"t2v/R@1": found["seen_styles"][name]},
            "mean of the unseen": {"t2v/R@1": found["unseen_styles"][name]},
        }
        for name, result in results.items()
    }
    show_table(styles_table("by style of the caption", columns))
