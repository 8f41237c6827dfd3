"""Checks what an invalid configuration names, so that its mistakes do not hide missing files and unknown models."""

import os
from collections.abc import Iterator

from waver.config import Draft
from waver.doctor import data, machine
from waver.doctor.findings import Checks, Finding
from waver.doctor.stages import check_released_files
from waver.model.architecture import find_architecture
from waver.model.pretrained.weights import find_weights

_OF_MODEL = (
    "model",
    "similarity",
    "knowledge",
    "loss",
    "video.size",
    "video.max_frames",
    "text.max_words",
    "train.backbone_lr_scale",
)
"""Settings that decide whether the student can be built."""


def check_draft(draft: Draft) -> list[Finding]:
    """Returns the errors in what a configuration with mistakes names, as far as its mistakes leave no doubt about it."""
    checks, config = Checks(), draft.config
    if draft.is_certain("data"):
        captions = checks.load("annotations", data.read_captions, config)
        if captions is not None:
            checks.run("videos", data.check_videos, config, captions, decoded=True)
    else:
        checks.run("annotations", _check_paths, draft)
    if draft.is_certain(*_OF_MODEL):
        checks.load("model", machine.measure_model, config, needed=True)
    elif draft.is_certain("model.backbone"):
        checks.run("model", _check_backbone, draft)
    if draft.is_certain("model.backbone", "model.weights", "video.size"):
        checks.run("weights", _check_weights, draft)
    if draft.is_certain("knowledge.released"):
        checks.run("released phrases", check_released_files, config)
    if draft.is_certain("storage"):
        remedy = "change its permissions, or set storage.path"
        checks.run("storage", machine.check_writable, [config.storage.folder], remedy, name="storage")
    return [finding for finding in checks.findings if finding.level == "error"]


def _check_paths(draft: Draft) -> Iterator[Finding]:
    for name in ("annotations", "videos"):
        path = getattr(draft.config.data, name)
        if draft.is_certain("data.format", f"data.{name}") and not os.path.exists(path):  # noqa: PTH110
            yield Finding("error", name, f"data.{name}: {path} does not exist", f"correct data.{name}")


def _check_backbone(draft: Draft) -> Iterator[Finding]:
    find_architecture(draft.config.model.backbone)
    yield from ()


def _check_weights(draft: Draft) -> Iterator[Finding]:
    weights = draft.config.model.weights
    if weights is not None and not isinstance(find_weights(draft.config.model.backbone, weights), dict):
        yield from machine.check_model_weights(draft.config, needed=True)
