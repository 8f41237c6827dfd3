"""`waver quickstart`: all stages of an experiment on a world that it renders itself.

Videos are captioned in a few writing styles, and searched in unseen ones too. The same student is trained three times:
without knowledge, with knowledge, and distilled.
"""

import logging
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from waver.config import ExperimentConfig
from waver.data.ledger import describe_failures
from waver.evaluation.metrics import chance
from waver.evaluation.protocols import Protocol
from waver.evaluation.tables import mean_recall, metrics_table, styles_table
from waver.knowledge.store import Knowledge
from waver.on_ray.cluster.capacity import local_cpus
from waver.on_ray.cluster.connection import connect
from waver.on_ray.stages.evaluate import run_evaluation
from waver.on_ray.stages.ingest import IngestReport, run_ingest
from waver.on_ray.stages.match import run_match
from waver.on_ray.stages.train import run_training
from waver.quickstart.dictionary import extract_or_copy_dictionary
from waver.quickstart.experiment import quickstart_config
from waver.quickstart.searching import Found, describe_videos, found_table, index_folder, search_test_videos
from waver.quickstart.weights import write_backbone
from waver.quickstart.world import SEEN_STYLES, UNSEEN_STYLES, WORLD, render_world
from waver.runs.inputs import load_captions
from waver.tools.files import write_json
from waver.tools.lock import hold_lock
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
"""Name of a run in tables -> its overrides of experiment.yaml, which were chosen on the validation split.

The distilled student needs no knowledge at inference.
"""
REMARK = (
    "one seed and 120 clips show that the stages work, not that phrases help: the differences are smaller than their "
    "confidence intervals, and phrases of other clips, or one phrase for all, do as well: see experiments/RESULTS.md"
)
"""What is printed below the table of writing styles."""
EXAMPLE = "a red circle moves to the left"
"""A query for the test videos, for the user to try."""
MAIN_RUN = "with knowledge"
"""The run that DDP workers train. Starting a group of workers takes longer than training these small students, and metrics
do not depend on the number of workers, so the other runs train in this process."""


def run_quickstart(output: Path, *, workers: int, show_table: Callable[[object], None]) -> dict:
    """Renders the world, ingests it, extracts and matches phrases, trains three students, evaluates them, and searches.

    Args:
        output: folder of everything that is written, including results.json.
        workers: number of DDP workers of the run with knowledge.
        show_table: is called with each table of metrics and of answers, and with the lines of the evaluation protocol.

    Returns:
        The content of results.json: metrics (of the run with knowledge, of all runs, and t2v/R@1 by style), metrics of a
        random ranking, numbers of clips and failures, size of the dictionary, seconds of each stage, peak memory in bytes.
    """
    output = output.absolute()
    logger.info(f"output folder: {output}")
    in_process = {name: quickstart_config(output, 1, overrides) for name, overrides in RUNS.items()}
    config = quickstart_config(output, workers, RUNS[MAIN_RUN])
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def record_seconds(name: str) -> None:
        seconds[name] = time.perf_counter() - start - sum(seconds.values())

    with hold_lock(output, "quickstart", instead="choose another folder with --output"), sample_peak_memory() as memory:
        _render_with_progress(output / "world")
        record_seconds("render")
        write_backbone(output / "backbone.safetensors")
        with connect(num_cpus=local_cpus(config)) as cluster:
            logger.info(cluster)
            report = run_ingest(config)
            record_seconds("ingest")
            dictionary = extract_or_copy_dictionary(config)
            record_seconds("vocabulary")
            knowledge = run_match(in_process[MAIN_RUN])
            record_seconds("match")
            logger.info(_describe_match(config, knowledge))
            for run in (in_process | {MAIN_RUN: config}).values():
                run_training(run)
            record_seconds("train")
            results = {name: run_evaluation(run.run_folder, run, split="test") for name, run in in_process.items()}
            record_seconds("evaluate")
            found = search_test_videos(in_process[MAIN_RUN])
        record_seconds("search")
    content = _summarize(results) | {
        "seconds": seconds | {"total": time.perf_counter() - start},
        "peak_memory_bytes": memory.peak,
        "clips": report.counts,
        "failures": report.reasons,
        "num_phrases": len(dictionary.phrases),
        "workers": workers,
        "config": config.digest(),
    }
    write_json(output / "results.json", content)
    _show_tables(content, results, show_table)
    _log_failures(report)
    logger.info(", ".join(f"{name} {value:.0f} s" for name, value in content["seconds"].items()))
    logger.info(f"results: {output / 'results.json'}\ncurves: waver board {shlex.quote(str(config.run_folder.parent))}")
    _show_search(config, found, show_table)
    return content


def _show_search(config: ExperimentConfig, found: Sequence[Found], show_table: Callable[[object], None]) -> None:
    logger.info("the run with knowledge searches the test videos with captions by three writers:")
    descriptions = describe_videos(config)
    for query in found:
        show_table(found_table(query, descriptions))
    index = shlex.quote(str(index_folder(config)))
    logger.info(f'next: waver search {index} "{EXAMPLE}"')
    logger.info(f"in the browser: waver serve {index}")


def _log_failures(report: IngestReport) -> None:
    num_failed, num_clips = sum(report.reasons.values()), sum(report.counts.values())
    logger.info(f"{num_failed} of {num_clips} clips could not be decoded, since their files are broken on purpose:")
    logger.info("\n".join(describe_failures(report.failures)))


def _render_with_progress(folder: Path) -> None:
    """Renders the world, with a progress bar if standard error is a terminal."""
    logger.info("rendering the videos")
    console = Console(stderr=True)
    with Progress(*Progress.get_default_columns(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("rendering", total=None)
        render_world(folder, **WORLD, progress=lambda done, total: bar.update(task, completed=done, total=total))


def _describe_match(config: ExperimentConfig, knowledge: Knowledge) -> str:
    """Returns a line with a caption of a clip and the three phrases that the teacher ranks highest for the clip."""
    caption = next(row for row in load_captions(config).to_pylist() if not knowledge.unmatched_clips([row["clip_id"]]))
    best = knowledge.phrase_ids([caption["clip_id"]], 3)[0].tolist()
    return (
        f'"{caption["caption"]}"; best phrases, from the video alone: {", ".join(knowledge.phrases[i] for i in best)}'
    )


def _summarize(results: dict[str, dict]) -> dict[str, Any]:
    """Returns the metrics of all runs, as results.json has them; `results` maps the name of a run to its evaluation."""
    main = results[MAIN_RUN]
    return {
        "protocol": main["protocol"],
        "metrics": main["metrics"],
        "metrics_of_runs": {name: result["metrics"] for name, result in results.items()},
        "chance": chance(main["gallery_size"]),
        "styles": {name: result["styles"] for name, result in results.items()},
        "seen_styles": {name: mean_recall(result["styles"], SEEN_STYLES) for name, result in results.items()},
        "unseen_styles": {name: mean_recall(result["styles"], UNSEEN_STYLES) for name, result in results.items()},
        "gallery_size": main["gallery_size"],
        "num_queries": main["num_queries"],
        "num_missing_clips": main["num_missing_clips"],
        "leaky": main["leaky"],
    }


def _show_tables(content: dict, results: dict[str, dict], show_table: Callable[[object], None]) -> None:
    for line in Protocol(**content["protocol"]).lines():
        show_table(line)
    title = f"{content['num_queries']} captions in {content['gallery_size']} clips never seen in training"
    rows = {name: result["metrics"] for name, result in results.items()}
    show_table(metrics_table(title, rows | {"chance": content["chance"]}))
    table = styles_table(
        "by style of the caption",
        content["styles"],
        num_clips=content["gallery_size"],
        train_styles=results[MAIN_RUN]["train_styles"],
    )
    show_table(table)
    logger.info(REMARK)
