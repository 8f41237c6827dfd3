"""Evaluates a split of a run, and exports its embeddings for other programs."""

import logging
from pathlib import Path

from waver.config import ExperimentConfig
from waver.evaluation.evaluate import EvaluationOptions
from waver.evaluation.gallery import build_gallery
from waver.on_ray.stages.embed import embed
from waver.on_ray.stages.evaluate import duplicates_of_split, evaluate_in_process, evaluation_knowledge
from waver.on_ray.stages.start import open_evaluations
from waver.runs.embeddings import evaluation_needs
from waver.runs.inputs import LEAKY
from waver.runs.results import result_of
from waver.search.export import EvaluatedRun, Format, write_run
from waver.search.export.folder import Source, check_folder
from waver.tools.object_store import display_path

logger = logging.getLogger(__name__)


def export_run(
    checkpoint: Path, config: ExperimentConfig, folder: Path, format: Format, *, split: str, of_run: bool
) -> EvaluatedRun:
    """Evaluates a checkpoint in this process, and writes the embeddings of the split; returns what it wrote.

    Memory holds the embeddings of the split, as in an evaluation by one process.

    Args:
        checkpoint: checkpoint folder.
        config: its configuration; paths may differ.
        folder: receives the files; an earlier export of the same run, split and format is replaced.
        format: format of the files.
        split: train, validation or test.
        of_run: whether the user named a run, whose best checkpoint this is; False if the user named the checkpoint itself.

    Raises:
        ExportError: if the folder holds something else, or the disk is full.
        StartError: with everything that is missing or does not fit the checkpoint.
        WaverError: if the evaluation fails.
    """
    named = checkpoint.parent if of_run else checkpoint
    source = Source(display_path(named.absolute()), split, format)
    check_folder(folder, source)
    writes = [folder.absolute().parent]
    inputs = open_evaluations({checkpoint: config}, split, writes=writes, stage="export")[checkpoint]
    captions, store = inputs.captions, inputs.store
    assert captions is not None, "an export cannot start without captions"
    assert store is not None, "an export cannot start without clip store"
    queries = build_gallery(captions, split)
    _, excused = duplicates_of_split(captions, store, queries, split)
    knowledge = evaluation_knowledge(checkpoint, config, captions, store, split)
    logger.info(f"embedding the {split} split with {display_path(checkpoint)}")
    needs = evaluation_needs(config, captions, store, split, checkpoint=checkpoint)
    clips = embed(config, store, needs, checkpoint=checkpoint).open(store)
    options = EvaluationOptions(excused=excused, keep_video=True, keep_text=True)
    evaluation = evaluate_in_process(checkpoint, config, captions, clips, knowledge, split=split, options=options)
    chosen_on = "validation" if of_run else None
    result = result_of(evaluation, checkpoint, config, knowledge, captions, chosen_on=chosen_on)
    if result["leaky"]:
        logger.info(LEAKY)
    run = EvaluatedRun(
        config.name, display_path(checkpoint), config.similarity.kind, evaluation, queries, result, excused
    )
    write_run(run, folder, source)
    return run
