"""Evaluating a checkpoint: in this process, or on the workers of a cluster."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from jaxtyping import Int
from ray.train.torch import get_device
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from waver.config import ExperimentConfig
from waver.data.clip_store import ClipStore
from waver.data.duplicates import Duplicates, equivalent_clips, excused_pairs, find_duplicates
from waver.evaluation.evaluate import Evaluation, EvaluationOptions, evaluate
from waver.evaluation.gallery import Gallery, build_gallery
from waver.evaluation.trec import TREC_DEPTH, write_trec
from waver.knowledge.store import Knowledge
from waver.on_ray.cluster.capacity import local_cpus
from waver.on_ray.cluster.connection import cluster_address, connect, local_device
from waver.on_ray.cluster.signals import signal_actor
from waver.on_ray.cluster.workers import run_on_workers
from waver.runs.checkpoint import checkpoint_knowledge, load_student
from waver.runs.folder import find_checkpoint
from waver.runs.inputs import LEAKY, load_captions, open_knowledge, open_store
from waver.runs.results import result_of
from waver.tools.files import write_json
from waver.tools.object_store import display_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    checkpoint: Path
    config: ExperimentConfig
    captions: ray.ObjectRef
    store: Path
    knowledge: Path | None
    split: str
    options: EvaluationOptions


def evaluate_here(
    checkpoint: Path,
    config: ExperimentConfig,
    captions: pa.Table,
    store: ClipStore,
    knowledge: Knowledge | None = None,
    *,
    split: str,
    options: EvaluationOptions = EvaluationOptions(),
) -> Evaluation:
    """Exact metrics of a split, by this process, with a bar on a terminal.

    Args:
        checkpoint: folder.
        config: of the run.
        captions: caption table.
        store: clips.
        knowledge: of the clips, where config.informed_at_inference.
        split: train, validation or test.
        options: what to compute beside the plain metrics.
    """
    student = load_student(checkpoint, config).to(local_device(config.resources))
    console = Console(stderr=True)
    with Progress(*Progress.get_default_columns(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("embedding clips", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return evaluate(
            student,
            captions,
            store,
            config,
            split=split,
            knowledge=knowledge,
            options=options,
            on_progress=show,
        )


def evaluate_on_workers(
    checkpoint: Path,
    config: ExperimentConfig,
    captions: pa.Table,
    store: ClipStore,
    knowledge: Knowledge | None = None,
    *,
    split: str,
    options: EvaluationOptions = EvaluationOptions(),
) -> Evaluation:
    """The same metrics, by resources.workers of the connected cluster; they are the same for any number of them."""
    job = _Job(
        checkpoint.absolute(),
        config,
        ray.put(captions),
        store.path,
        knowledge.path if knowledge else None,
        split,
        options,
    )
    with signal_actor() as actor:
        return run_on_workers(_evaluate_worker, job, config.resources, signals=actor)


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
        options=job.options,
    )
    return dataclasses.replace(evaluation, ranks=evaluation.ranks.cpu())


def run_evaluation(
    path: Path,
    config: ExperimentConfig,
    *,
    split: str,
    output: Path | None = None,
    trec: Path | None = None,
    trec_depth: int = TREC_DEPTH,
) -> dict:
    """Evaluates a checkpoint, or the best one of a run; writes the result as JSON and returns it.

    Args:
        path: of the checkpoint or the run.
        config: that of the checkpoint, perhaps with other places and resources.
        split: train, validation or test.
        output: JSON file; by default `evaluation_<split>.json` in the folder of the run, with the checkpoint's name in it
            where one was named. What stands twice in the split is listed beside it, in `duplicates_<split>.json`.
        trec: folder that receives the rankings in TREC's format, see `waver.evaluation.trec`; None for none.
        trec_depth: answers of each query in them.
    """
    checkpoint, captions = find_checkpoint(path), load_captions(config)
    queries = build_gallery(captions, split)
    duplicates, excused = _audit(config, captions, queries, split)
    top_k = min(trec_depth, len(queries.clip_ids)) if trec else 0
    options = EvaluationOptions(top_k=top_k, excused=excused, rescore=True)
    evaluation, knowledge = evaluate_checkpoint(checkpoint, config, captions, split=split, options=options)
    is_best = path != checkpoint
    chosen_on = "validation" if is_best else None
    result = result_of(evaluation, checkpoint, config, knowledge, captions, chosen_on=chosen_on)
    if trec:
        t2v, v2t = evaluation.ranks.top, evaluation.ranks.top_groups
        assert t2v is not None, "evaluate with top_k > 0"
        assert v2t is not None, "evaluate with top_k > 0"
        write_trec(
            trec,
            clip_ids=evaluation.clip_ids,
            text_ids=evaluation.text_ids,
            clip_of_text=evaluation.clip_of_text.tolist(),
            t2v=t2v,
            v2t=v2t,
            tag=config.name,
        )
        logger.info(f"rankings, {top_k} deep, are in {trec}")
    if result["leaky"]:
        logger.info(LEAKY)
    result["duplicates"] = duplicates.counts
    name = split if is_best else f"{split}_{checkpoint.name}"
    write_json(output or checkpoint.parent / f"evaluation_{name}.json", result)
    write_json((output or checkpoint).parent / f"duplicates_{split}.json", duplicates.as_json())
    return result


def _audit(
    config: ExperimentConfig, captions: pa.Table, queries: Gallery, split: str
) -> tuple[Duplicates, Int[Tensor, "pairs 2"] | None]:
    """What stands twice in a split, and which answers to its queries are therefore not wrong; None where all others are."""
    own = captions.filter(pc.equal(captions["split"], split))
    equivalent = equivalent_clips(own, open_store(config, captions))
    texts, clips = excused_pairs(queries.texts, queries.clip_of_text.numpy(), queries.clip_ids, equivalent)
    excused = torch.from_numpy(np.stack([texts, clips], axis=1)) if len(texts) else None
    return find_duplicates(captions, split, equivalent), excused


def evaluate_checkpoint(
    checkpoint: Path,
    config: ExperimentConfig,
    captions: pa.Table,
    *,
    split: str,
    queries: pa.Table | None = None,
    options: EvaluationOptions = EvaluationOptions(),
) -> tuple[Evaluation, Knowledge | None]:
    """Evaluates a checkpoint, in this process or on workers.

    Args:
        checkpoint: folder.
        config: that of the checkpoint, perhaps with other places and resources.
        captions: the data set's.
        split: train, validation or test.
        queries: asked in place of the split's captions, of the same clips; a caption table too.
        options: what to compute beside the plain metrics.

    Returns:
        The figures, and the knowledge that informed the videos; None for none.
    """
    store = open_store(config, captions)
    knowledge = None
    if config.informed_at_inference:
        knowledge = open_knowledge(config, captions, store, (split,))
        knowledge.check_same_dictionary(checkpoint, checkpoint_knowledge(checkpoint))
    logger.info(f"evaluating {display_path(checkpoint)} on the {split} split")
    asked = captions if queries is None else queries
    if config.resources.max_workers == 1 and not cluster_address():
        return evaluate_here(checkpoint, config, asked, store, knowledge, split=split, options=options), knowledge
    with connect(num_cpus=local_cpus(config)) as where:
        logger.info(where)
        return evaluate_on_workers(checkpoint, config, asked, store, knowledge, split=split, options=options), knowledge
