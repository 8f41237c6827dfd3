"""Evaluates a checkpoint, in this process or on the workers of a Ray cluster."""

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
from waver.data.embedded_clips import EmbeddedClips, EmbeddingPaths
from waver.doctor.preflight import Inputs
from waver.evaluation.evaluate import Evaluation, EvaluationOptions, evaluate
from waver.evaluation.gallery import Gallery, build_gallery
from waver.evaluation.trec import TREC_DEPTH, write_trec
from waver.knowledge.control import Control
from waver.knowledge.store import Knowledge
from waver.on_ray.cluster.capacity import local_cpus
from waver.on_ray.cluster.connection import cluster_address, connect
from waver.on_ray.cluster.signals import signal_actor
from waver.on_ray.cluster.workers import run_on_workers
from waver.on_ray.stages.embed import embed
from waver.on_ray.stages.start import open_evaluations, open_zero_shot
from waver.runs.checkpoint import check_dictionary, load_student, stored_activation
from waver.runs.embeddings import check_embeddings, evaluation_needs
from waver.runs.folder import find_checkpoint
from waver.runs.inputs import LEAKY, open_knowledge
from waver.runs.results import result_of
from waver.runs.untrained import make_zero_shot_run, record_metrics
from waver.tools.files import write_json
from waver.tools.object_store import display_path
from waver.training.build import local_device

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _EvaluationJob:
    """Arguments of `_evaluate_on_worker`, as they travel to a worker."""

    checkpoint: Path
    config: ExperimentConfig
    captions: ray.ObjectRef
    store: Path
    knowledge: Path | None
    split: str
    options: EvaluationOptions
    embeddings: EmbeddingPaths
    control: Control | None


def evaluate_in_process(
    checkpoint: Path,
    config: ExperimentConfig,
    captions: pa.Table,
    store: ClipStore | EmbeddedClips,
    knowledge: Knowledge | None = None,
    *,
    split: str,
    options: EvaluationOptions = EvaluationOptions(),
) -> Evaluation:
    """Computes the exact metrics of a split in this process, with a progress bar on a terminal.

    Args:
        checkpoint: checkpoint folder.
        config: configuration of the checkpoint.
        captions: caption table; only rows of the split are evaluated.
        store: clip store, or embeddings of clips and captions (`EmbeddedClips`).
        knowledge: phrases of the clips, required if config.informed_at_inference.
        split: train, validation or test.
        options: what to compute beside the plain metrics.

    Raises:
        EmbeddingError: if the embeddings are those of other weights.
        EvaluationError: if the split or its similarities cannot be evaluated, see `waver.evaluation.evaluate.evaluate`.
    """
    student = load_student(checkpoint, config).to(local_device(config))
    check_embeddings(config, student.backbone, store)
    console = Console(stderr=True)
    with Progress(*Progress.get_default_columns(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("embedding clips", total=None)

        def update_bar(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return evaluate(
            student,
            captions,
            store,
            config,
            split=split,
            knowledge=knowledge,
            options=options,
            on_progress=update_bar,
        )


def evaluate_on_workers(
    checkpoint: Path,
    config: ExperimentConfig,
    captions: pa.Table,
    store: ClipStore | EmbeddedClips,
    knowledge: Knowledge | None = None,
    *,
    split: str,
    options: EvaluationOptions = EvaluationOptions(),
) -> Evaluation:
    """Computes the metrics of `evaluate_in_process` on config.resources.workers of the connected Ray cluster.

    They are the same for any number of workers.

    Raises:
        WorkerError: if the evaluation fails on the workers.
        ClusterTooSmallError: if the cluster is too small for resources.workers.
    """
    job = _EvaluationJob(
        checkpoint.absolute(),
        config,
        ray.put(captions),
        store.path,
        knowledge.path if knowledge else None,
        split,
        options,
        EmbeddingPaths.of(store),
        knowledge.control if knowledge else None,
    )
    with signal_actor() as actor:
        return run_on_workers(_evaluate_on_worker, job, config.resources, signals=actor)


def _evaluate_on_worker(job: _EvaluationJob) -> Evaluation:
    student = load_student(job.checkpoint, job.config).to(get_device())
    knowledge = Knowledge(job.knowledge, job.control) if job.knowledge else None
    clips = job.embeddings.open(ClipStore(job.store))
    check_embeddings(job.config, student.backbone, clips)
    evaluation = evaluate(
        student,
        ray.get(job.captions),
        clips,
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

    Writes `duplicates_<split>.json` as well, which lists the duplicate captions and videos of the split.

    Args:
        path: folder of a checkpoint or a run.
        config: configuration of the checkpoint; paths and resources may differ.
        split: train, validation or test.
        output: JSON file; by default `evaluation_<split>.json` in the run folder for the best checkpoint of a run, or
            `evaluation_<split>_<checkpoint>.json` there for a checkpoint.
        trec: folder for the rankings in TREC format, see `waver.evaluation.trec`; None to write none.
        trec_depth: number of answers per query in those rankings, at most.

    Raises:
        WaverError: `StartError` with everything that is missing or does not fit the checkpoint; or if the evaluation fails.
    """
    checkpoint = find_checkpoint(path)
    files = _Files(output, trec, trec_depth)
    writes = files.folders(checkpoint.parent)
    inputs = open_evaluations({checkpoint: config}, split, writes=writes, stage="evaluate")[checkpoint]
    return _evaluate_and_write(checkpoint, config, inputs, files, split=split, of_run=path != checkpoint)


def run_zero_shot(
    config: ExperimentConfig,
    *,
    split: str,
    output: Path | None = None,
    trec: Path | None = None,
    trec_depth: int = TREC_DEPTH,
) -> dict:
    """Evaluates the pre-trained backbone of an experiment as it is: no training, mean of the frames.

    Makes the run of that model, in which the result is; `waver.runs.untrained` says what it holds.

    Args:
        config: from `waver.runs.untrained.zero_shot_experiment`.
        split: train, validation or test.
        output: JSON file; by default `evaluation_<split>.json` in the folder of the zero-shot run.
        trec: see `run_evaluation`.
        trec_depth: see `run_evaluation`.

    Raises:
        WaverError: `StartError` with everything that is missing; `RunError` if the run folder holds another run; or if the
            evaluation fails.
    """
    files = _Files(output, trec, trec_depth)
    inputs = open_zero_shot(config, split, writes=[config.run_folder, *files.folders(config.run_folder)])
    checkpoint = make_zero_shot_run(config)
    return _evaluate_and_write(checkpoint, config, inputs, files, split=split, of_run=True)


@dataclass(frozen=True)
class _Files:
    """Where an evaluation writes."""

    output: Path | None
    """JSON file; None for the default."""
    trec: Path | None
    """Folder of rankings; None for none."""
    trec_depth: int

    def folders(self, default: Path) -> list[Path]:
        """Returns the folders that are written; `default` is that of the result."""
        result = self.output.absolute().parent if self.output else default.absolute()
        return [result, *([self.trec.absolute()] if self.trec else [])]


def _evaluate_and_write(
    checkpoint: Path, config: ExperimentConfig, inputs: Inputs, files: _Files, *, split: str, of_run: bool
) -> dict:
    """Evaluates a checkpoint, and writes and returns the result; `of_run` says that a run was named, not the checkpoint."""
    captions, store = inputs.captions, inputs.store
    trec, output = files.trec, files.output
    assert captions is not None, "an evaluation cannot start without captions"
    assert store is not None, "an evaluation cannot start without clip store"
    logger.info(f"the activation of the backbone is {stored_activation(checkpoint)}")
    queries = build_gallery(captions, split)
    duplicates, excused = duplicates_of_split(captions, store, queries, split)
    top_k = min(files.trec_depth, len(queries.clip_ids)) if trec else 0
    options = EvaluationOptions(top_k=top_k, excused=excused, rescore=True)
    evaluation, knowledge = evaluate_checkpoint(checkpoint, config, captions, store, split=split, options=options)
    chosen_on = "validation" if of_run else None
    result = result_of(evaluation, checkpoint, config, knowledge, captions, chosen_on=chosen_on)
    if trec:
        _write_rankings(trec, evaluation, tag=config.name)
        logger.info(f"rankings (the first {top_k} answers of each query) are in {trec}")
    if result["leaky"]:
        logger.info(LEAKY)
    if evaluation.truncation.num_cut:
        logger.warning(f"{split}: {evaluation.truncation.describe(config.text.max_words)}")
    result["duplicates"] = duplicates.counts
    name = split if of_run else f"{split}_{checkpoint.name}"
    written = output or checkpoint.parent / f"evaluation_{name}.json"
    write_json(written, result)
    write_json(written.parent / f"duplicates_{split}.json", duplicates.as_json())
    logger.info(f"the result with all metrics is in {display_path(written)}")
    if result["origin"] and split == "validation":
        record_metrics(checkpoint.parent, result["metrics"])
    return result


def _write_rankings(folder: Path, evaluation: Evaluation, *, tag: str) -> None:
    t2v, v2t = evaluation.ranks.top, evaluation.ranks.top_groups
    assert t2v is not None, "evaluate with top_k > 0"
    assert v2t is not None, "evaluate with top_k > 0"
    write_trec(
        folder,
        clip_ids=evaluation.clip_ids,
        text_ids=evaluation.text_ids,
        clip_of_text=evaluation.clip_of_text.tolist(),
        t2v=t2v,
        v2t=v2t,
        tag=tag,
    )


def duplicates_of_split(
    captions: pa.Table, store: ClipStore, queries: Gallery, split: str
) -> tuple[Duplicates, Int[Tensor, "pairs 2"] | None]:
    """Finds the duplicates of a split, and the (text, clip) pairs that they excuse, see `EvaluationOptions.excused`."""
    split_captions = captions.filter(pc.equal(captions["split"], split))
    equivalent = equivalent_clips(split_captions, store)
    texts, clips = excused_pairs(queries.texts, queries.clip_of_text.numpy(), queries.clip_ids, equivalent)
    excused = torch.from_numpy(np.stack([texts, clips], axis=1)) if len(texts) else None
    return find_duplicates(captions, split, equivalent), excused


def evaluate_checkpoint(
    checkpoint: Path,
    config: ExperimentConfig,
    captions: pa.Table,
    store: ClipStore,
    *,
    split: str,
    queries: pa.Table | None = None,
    options: EvaluationOptions = EvaluationOptions(),
) -> tuple[Evaluation, Knowledge | None]:
    """Evaluates a checkpoint: on a Ray cluster if RAY_ADDRESS names one or resources.workers > 1, else in this process.

    Args:
        checkpoint: checkpoint folder.
        config: configuration of the checkpoint; paths and resources may differ.
        captions: caption table of the data set.
        store: its clip store, see `waver.runs.inputs.open_store`.
        split: train, validation or test.
        queries: caption table to use instead, with other captions of the same clips; None for the captions of the split.
        options: what to compute beside the plain metrics.

    Returns:
        The evaluation, and the knowledge that the video embeddings used; None if they used none.

    Raises:
        WaverError: if an input is missing or does not fit the checkpoint, or the evaluation fails.
    """
    knowledge = evaluation_knowledge(checkpoint, config, captions, store, split)
    logger.info(f"evaluating {display_path(checkpoint)} on the {split} split")
    table = captions if queries is None else queries
    needs = evaluation_needs(config, captions, store, split, checkpoint=checkpoint)
    if queries is not None:  # rewritten queries are in no store
        needs = dataclasses.replace(needs, captions=None)
    if config.resources.max_workers == 1 and not cluster_address():
        clips = embed(config, store, needs, checkpoint=checkpoint).open(store)
        return evaluate_in_process(checkpoint, config, table, clips, knowledge, split=split, options=options), knowledge
    with connect(num_cpus=local_cpus(config)) as description:
        logger.info(description)
        clips = embed(config, store, needs, checkpoint=checkpoint).open(store)
        return evaluate_on_workers(checkpoint, config, table, clips, knowledge, split=split, options=options), knowledge


def evaluation_knowledge(
    checkpoint: Path, config: ExperimentConfig, captions: pa.Table, store: ClipStore, split: str
) -> Knowledge | None:
    """Opens the knowledge that a model embeds the clips of a split with; returns None if it uses none at inference.

    Raises:
        KnowledgeError: if it is missing, lacks clips of the split, or has another dictionary than the model.
    """
    if not config.informed_at_inference:
        return None
    knowledge = open_knowledge(config, captions, store, (split,))
    check_dictionary(knowledge, checkpoint)
    return knowledge
