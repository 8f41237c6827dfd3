"""Checks of a frozen teacher other than the student's own backbone (`knowledge.teacher`)."""

from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import torch

from waver.config import ExperimentConfig
from waver.data.clip_store import ClipStore
from waver.data.ledger import StoreError
from waver.doctor.findings import Finding
from waver.doctor.machine import check_model_weights
from waver.model.errors import BackboneError
from waver.runs.soft_targets import open_teacher_store
from waver.tools.errors import WaverError
from waver.tools.object_store import display_path
from waver.training.build import build_backbone


def check_teacher(
    config: ExperimentConfig,
    captions: pa.Table | None,
    store: ClipStore | None,
    *,
    runs: bool,
    reads: bool,
    elsewhere: bool = False,
) -> Iterator[Finding]:
    """Checks the architecture and the weights of the teacher, and the clip store whose frames it reads.

    Args:
        config: configuration of an experiment with another teacher.
        captions: its caption table, or None if it cannot be read.
        store: its clip store, or None if there is no usable one.
        runs: whether the teacher embeds in the next stage: then it is an error if it cannot be built.
        reads: whether the next stage reads the teacher's clip store, and does not make it.
        elsewhere: whether workers on other machines load the weights, see `check_model_weights`.
    """
    teacher = config.teacher
    try:
        yield Finding("ok", "teacher", _describe(config))
    except (BackboneError, WaverError) as error:
        yield Finding("error" if runs else "warning", "teacher", _named(str(error)))
        return
    for finding in check_model_weights(teacher, needed=runs, elsewhere=elsewhere):
        yield replace(finding, check="teacher", found=_named(finding.found), remedy=_named(finding.remedy))
    if captions is None or store is None or teacher.clip_store == config.clip_store:
        return
    try:
        theirs = open_teacher_store(config, captions, store)
    except (StoreError, OSError) as error:
        level = "error" if reads else "info"
        yield Finding(level, "clip store of the teacher", str(error), "next: waver ingest CONFIG")
        return
    yield Finding("ok", "clip store of the teacher", display_path(theirs.path))


def _describe(config: ExperimentConfig) -> str:
    """Returns the sizes of the teacher in a sentence.

    Raises:
        BackboneError: if it cannot be built, or has too few positions for captions that it is to read.
    """
    teacher = config.teacher
    with torch.device("meta"):
        backbone = build_backbone(teacher, None)
    if config.uses_teacher and teacher.text.max_words > backbone.num_positions:
        raise BackboneError(
            f"model.backbone has {backbone.num_positions} positions, into which text.max_words = {teacher.text.max_words} "
            "must fit, since the teacher reads captions"
        )
    frames = teacher.preprocessing
    return (
        f"another than the student: width {backbone.width}, at most {teacher.video.max_frames} frames of "
        f"{frames.size} x {frames.size} pixels a clip"
    )


def _named(sentence: str) -> str:
    """Returns a sentence about a model with the keys of the teacher."""
    return sentence.replace("model.backbone", "knowledge.teacher.backbone").replace(
        "model.weights", "knowledge.teacher.weights"
    )
