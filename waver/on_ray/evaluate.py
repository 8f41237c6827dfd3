"""Evaluating a checkpoint: in this process, or on the workers of a cluster."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.train.torch import get_device
from rich.console import Console
from rich.progress import Progress

from waver.annotations import validation_source
from waver.checkpoint import learned_from, load_student
from waver.clip_store import ClipStore
from waver.config import ExperimentConfig
from waver.evaluation import Evaluation, evaluate
from waver.knowledge import Knowledge
from waver.objects import shown
from waver.on_ray.cluster import own_device
from waver.on_ray.signals import signals
from waver.on_ray.workers import run_on_workers
from waver.protocols import Protocol, protocol_of


@dataclass(frozen=True)
class _Job:
    checkpoint: Path
    config: ExperimentConfig
    captions: ray.ObjectRef
    store: Path
    knowledge: Path | None
    split: str
    how: Mapping[str, Any]


def evaluate_here(
    checkpoint: Path,
    config: ExperimentConfig,
    captions: pa.Table,
    store: ClipStore,
    knowledge: Knowledge | None = None,
    *,
    split: str,
    **how: Any,
) -> Evaluation:
    """Exact metrics of a split, by this process, with a bar on a terminal.

    Args:
        checkpoint: folder.
        config: of the run.
        captions: caption table.
        store: clips.
        knowledge: of the clips, where config.informed_at_inference.
        split: train, validation or test.
        how: other arguments of `waver.evaluation.evaluate`: top_k, excused, rescore.
    """
    student = load_student(checkpoint, config).to(own_device(config.resources))
    console = Console(stderr=True)
    with Progress(*Progress.get_default_columns(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("embedding clips", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return evaluate(student, captions, store, config, split=split, knowledge=knowledge, on_progress=show, **how)


def evaluate_on_workers(
    checkpoint: Path,
    config: ExperimentConfig,
    captions: pa.Table,
    store: ClipStore,
    knowledge: Knowledge | None = None,
    *,
    say: Callable[[str], None],
    split: str,
    **how: Any,
) -> Evaluation:
    """The same metrics, by resources.workers of the connected cluster; they are the same for any number of them."""
    job = _Job(
        checkpoint.absolute(),
        config,
        ray.put(captions),
        store.path,
        knowledge.path if knowledge else None,
        split,
        how,
    )
    with signals() as actor:
        return run_on_workers(_evaluate_worker, job, config.resources, signals=actor, say=say)


def result_of(
    evaluation: Evaluation,
    checkpoint: Path,
    config: ExperimentConfig,
    knowledge: Knowledge | None,
    captions: pa.Table,
    *,
    chosen_on: str | None,
) -> dict:
    """What is written about an evaluation: figures, and everything that says what they are figures of.

    Args:
        evaluation: the figures.
        checkpoint: of the model.
        config: of the model.
        knowledge: that informed the videos; None for none.
        captions: the data set's caption table.
        chosen_on: the split on which this checkpoint was found to be the best of its run; None where somebody named it.
    """
    learned = learned_from(checkpoint)
    leaky = bool((learned and learned["leaky"]) or (knowledge and knowledge.leaky))
    protocol = protocol_of_table(
        config,
        captions,
        evaluation.split,
        captions_per_clip=evaluation.clip_of_text.bincount().tolist(),
        num_missing_clips=len(evaluation.missing_clips),
        chosen_on=chosen_on,
        leaky=leaky,
        variants=list(evaluation.variants),
    )
    return {
        "protocol": protocol.as_json(),
        "split": evaluation.split,
        "metrics": evaluation.metrics,
        "variants": evaluation.variants,
        "gallery_size": evaluation.gallery_size,
        "num_queries": evaluation.num_queries,
        "num_missing_clips": len(evaluation.missing_clips),
        "missing_clips": list(evaluation.missing_clips),
        "ties": protocol.ties,
        "checkpoint": shown(checkpoint),
        "chosen_on": chosen_on,
        "validation": evaluation.validation,
        "styles": evaluation.styles,
        "knowledge": {"at_inference": config.informed_at_inference, "learned_from": learned},
        "leaky": leaky,
        "device": evaluation.device,
        "precision": evaluation.precision,
        "config": config.digest(),
    }


def protocol_of_table(config: ExperimentConfig, captions: pa.Table, split: str, **facts: Any) -> Protocol:
    """The protocol of figures on a split of a data set.

    Args:
        config: of the experiment.
        captions: the data set's caption table.
        split: on which the figures are.
        facts: other arguments of `waver.protocols.protocol_of`.
    """
    return protocol_of(
        data_format=config.data.format,
        data_split=getattr(config.data, "split", None),
        split=split,
        clip_ids={
            part: pc.unique(captions["clip_id"].filter(pc.equal(captions["split"], part))).to_pylist()
            for part in ("train", "validation", "test")
        },
        validation=validation_source(captions),
        knowledge_at_inference=config.informed_at_inference,
        **facts,
    )


def _evaluate_worker(job: _Job) -> Evaluation:
    student = load_student(job.checkpoint, job.config).to(get_device())
    knowledge = Knowledge(job.knowledge) if job.knowledge else None
    evaluation = evaluate(
        student,
        ray.get(job.captions),
        ClipStore(job.store),
        job.config,
        split=job.split,
        knowledge=knowledge,
        **job.how,
    )
    return dataclasses.replace(evaluation, ranks=evaluation.ranks.cpu())
