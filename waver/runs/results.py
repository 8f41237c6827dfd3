"""Builds the results that an evaluation writes: metrics, their protocol, and where the model comes from."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from waver.config import ExperimentConfig
from waver.data.annotations import validation_source
from waver.data.annotations.captions import styles_of
from waver.evaluation.evaluate import Evaluation
from waver.evaluation.protocols import EvaluatedSplit, identify_protocol
from waver.knowledge.store import Knowledge
from waver.runs.checkpoint import checkpoint_config, checkpoint_knowledge
from waver.runs.origin import read_origin
from waver.tools.object_store import display_path


def result_of(
    evaluation: Evaluation,
    checkpoint: Path,
    config: ExperimentConfig,
    knowledge: Knowledge | None,
    captions: pa.Table,
    *,
    chosen_on: str | None,
) -> dict[str, Any]:
    """Returns the JSON object that describes an evaluation: metrics, protocol, model, knowledge and device.

    Args:
        evaluation: the evaluation.
        checkpoint: checkpoint folder of the model.
        config: configuration of the model.
        knowledge: phrases that the clips were embedded with; None if they were embedded without.
        captions: the data set's caption table.
        chosen_on: split on which the checkpoint was the best of its run; None if the user named the checkpoint. Ignored for
            a model that waver did not train.
    """
    learned, origin = checkpoint_knowledge(checkpoint), read_origin(checkpoint)
    chosen_on = None if origin else chosen_on  # nothing was chosen among the epochs of a run
    leaky = bool((learned and learned["leaky"]) or (knowledge and knowledge.leaky))
    evaluated = evaluated_split(
        config,
        captions,
        evaluation.split,
        captions_per_clip=evaluation.clip_of_text.bincount().tolist(),
        num_missing_clips=len(evaluation.missing_clips),
        chosen_on=chosen_on,
        leaky=leaky,
        variants=list(evaluation.variants),
    )
    protocol = identify_protocol(replace(evaluated, origin=origin.describe() if origin else None))
    return {
        "protocol": protocol.as_json(),
        "origin": origin.as_json() if origin else None,
        "split": evaluation.split,
        "metrics": evaluation.metrics,
        "variants": evaluation.variants,
        "gallery_size": evaluation.gallery_size,
        "num_queries": evaluation.num_queries,
        "num_missing_clips": len(evaluation.missing_clips),
        "missing_clips": list(evaluation.missing_clips),
        "ties": protocol.ties,
        "cut_captions": {evaluation.split: asdict(evaluation.truncation)},
        "checkpoint": display_path(checkpoint),
        "chosen_on": chosen_on,
        "validation": evaluation.validation,
        "styles": evaluation.styles,
        "train_styles": None if origin else _train_styles(checkpoint, config, captions),
        "knowledge": _describe_knowledge(config, learned),
        "leaky": leaky,
        "device": evaluation.device,
        "precision": evaluation.precision,
        "config": config.digest(),
    }


def _train_styles(checkpoint: Path, config: ExperimentConfig, captions: pa.Table) -> list[str] | None:
    """Returns the writing styles that a model was trained on; None if that is unknown.

    They are those of its own run: an evaluation may read other styles or other data (`--set data...`).
    """
    trained = checkpoint_config(checkpoint).data
    if named := getattr(trained, "train_styles", None):
        return list(named)
    of_run, now = trained.annotations, config.data.annotations
    if of_run.name != now.name or getattr(config.data, "train_styles", None):  # a file that was moved keeps its name
        return None
    return list(styles_of(captions, "train"))


def _describe_knowledge(config: ExperimentConfig, learned: dict[str, Any] | None) -> dict[str, Any]:
    at_inference, control = config.informed_at_inference, config.knowledge.control
    return {"at_inference": at_inference, "control": control, "learned_from": learned}


def evaluated_split(
    config: ExperimentConfig,
    captions: pa.Table,
    split: str,
    *,
    captions_per_clip: Sequence[int],
    num_missing_clips: int,
    chosen_on: str | None,
    leaky: bool,
    variants: Sequence[str] = (),
) -> EvaluatedSplit:
    """Returns what identifies the protocol of an evaluation of a model that waver trained.

    Args:
        config: configuration of the experiment.
        captions: the data set's caption table.
        split: the evaluated split.
        captions_per_clip: number of captions of each evaluated clip.
        num_missing_clips: number of evaluated clips without embedding.
        chosen_on: split on which the checkpoint was chosen; None if the user named the checkpoint.
        leaky: whether the model or its phrases used captions of validation or test.
        variants: names of the metrics beside the plain ones.
    """
    return EvaluatedSplit(
        data_format=config.data.format,
        data_split=getattr(config.data, "split", None),
        split=split,
        clip_ids={
            part: pc.unique(captions["clip_id"].filter(pc.equal(captions["split"], part))).to_pylist()
            for part in ("train", "validation", "test")
        },
        validation=validation_source(captions),
        knowledge_at_inference=config.informed_at_inference,
        control=config.knowledge.control,
        captions_per_clip=captions_per_clip,
        num_missing_clips=num_missing_clips,
        chosen_on=chosen_on,
        leaky=leaky,
        variants=variants,
    )
