"""Turns a checkpoint of WAVER, DRL or CLIP4Clip into a run (`waver import`)."""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from waver.config import ConfigError, ExperimentConfig, load_config
from waver.config.model import KnowledgeConfig, ModelConfig, SimilarityConfig
from waver.config.training import LossConfig, TrainConfig
from waver.model.architecture import find_architecture
from waver.model.errors import BackboneError
from waver.model.pretrained.field_checkpoints import (
    FieldCheckpoint,
    FieldCheckpointError,
    read_field_checkpoint,
    same_backbone,
)
from waver.model.pretrained.weight_files import read_weights
from waver.model.pretrained.weights import load_weights
from waver.runs.origin import Origin
from waver.runs.padding import describe_padding
from waver.runs.untrained import check_free, make_run
from waver.tools.files import sha256_of
from waver.training.build import build_student

logger = logging.getLogger(__name__)

_SECTIONS = ("data", "video", "text", "ingest", "storage", "resources", "evaluate")
_KEYS = (
    "similarity.kind",
    "model.weights",
    "knowledge.top_k",
    "knowledge.num_matches",
    "knowledge.prompt",
    "knowledge.released",
    "train.precision",
)
"""Further settings that do not follow from a checkpoint."""
PHRASES_UNKNOWN = (
    "the file does not say with which phrases the model was trained; the phrases that the authors released contain phrases "
    "of test captions, so the metrics may be leaky"
)


def import_checkpoint(
    path: Path, name: str, config: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> tuple[Path, Origin]:
    """Turns a checkpoint into the run `storage/runs/<name>`, with the names of waver for its tensors.

    The tensors determine kind and sizes of the model, and the configuration determines data, videos and texts.

    Args:
        path: file of the checkpoint, such as pytorch_model.bin.4.
        name: name of the run.
        config: YAML file of an experiment; None for defaults, with a data section that the user replaces later.
        overrides: dotted key -> value for the configuration.

    Returns:
        The folder of the run's checkpoint, and the origin of the model.

    Raises:
        FieldCheckpointError: if the file is no such checkpoint, or cannot be read; the message names the file.
        ConfigError: if the configuration is invalid, or does not fit the checkpoint.
        RunError: if there is a run of that name.
        BackboneError: if the weights do not fit together.
    """
    overrides = overrides or {}
    if fixed := sorted(key for key in overrides if key.partition(".")[0] not in _SECTIONS and key not in _KEYS):
        raise ConfigError(
            f"--set {', '.join(fixed)}: these settings follow from the checkpoint. Only the sections {', '.join(_SECTIONS)} "
            f"and the keys {', '.join(_KEYS)} can be changed"
        )
    given = load_config(config, overrides) if config else None
    asked = overrides.get("similarity.kind", given.similarity.kind if given else None)
    try:
        found = read_field_checkpoint(read_tensors(path), similarity=asked)
    except FieldCheckpointError as error:
        raise FieldCheckpointError(f"{path} cannot be imported: {error}") from None
    if overrides.get("similarity.kind", found.similarity) != found.similarity:
        raise ConfigError(
            f"--set similarity.kind={asked}: the checkpoint has weights of {found.similarity}, so remove this setting"
        )
    experiment = imported_experiment(found, name, given or _default_config(found, overrides), overrides)
    check_free(experiment.run_folder)
    student = build_student(experiment)
    load_weights(student, found.state, source=str(path))
    notes = [*found.notes, _describe_reading(experiment)]
    if found.fusion:
        notes.append(PHRASES_UNKNOWN)
    if padding := describe_padding(student, experiment):
        notes.append(padding)
    origin = Origin("imported", found.describe(), path.name, sha256_of(path), tuple(notes))
    return make_run(experiment, student, origin), origin


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint by name; nothing in the file is executed.

    Wrappers and prefixes of training code are removed, except for `clip.`, which is part of the names in these checkpoints.

    Raises:
        FieldCheckpointError: if the file cannot be read, or holds something else.
    """
    if not path.is_file():
        what = "is a folder: name the file in it" if path.is_dir() else "does not exist"
        raise FieldCheckpointError(f"{path} {what}")
    try:
        return read_weights(path, kept_prefix="clip.")
    except BackboneError as error:
        raise FieldCheckpointError(str(error).removeprefix("model.weights: ")) from None


def imported_experiment(
    found: FieldCheckpoint, name: str, given: ExperimentConfig, overrides: Mapping[str, Any]
) -> ExperimentConfig:
    """Returns the experiment of an imported model: its own model, on the data of a given experiment.

    Args:
        found: the model.
        name: name of the run.
        given: configuration with the overrides; its model is replaced.
        overrides: dotted key -> value. model.weights, if it is there, names the weights of the teacher.

    Raises:
        ConfigError: if frames of the given size do not fit, or settings do not fit together.
    """
    if given.video.size not in (None, found.image_size):
        raise ConfigError(
            f"video.size = {given.video.size}, but the checkpoint reads frames of {found.image_size} pixels: --set "
            f"video.size={found.image_size}"
        )
    same = _is_backbone_of(found, given)
    backbone = given.model.backbone if same else found.backbone
    if not same and given.model.backbone != ModelConfig().backbone:
        logger.warning(
            f"model.backbone = {given.model.backbone} is ignored, since the checkpoint has another: {found.describe()}"
        )
    # In an imported run, model.weights are those of the teacher alone: the pre-trained network, which matches phrases.
    known = same or "model.weights" in overrides
    weights = given.model.weights if known else "openai" if isinstance(backbone, str) else None
    knowledge = KnowledgeConfig()
    if found.fusion:
        used = {"top_k": max(1, given.knowledge.top_k), "fusion": "published", "at_inference": True}
        knowledge = given.knowledge.model_copy(update=used)
    training = {"precision": given.train.precision, "global_batch_size": given.train.global_batch_size}
    settings = {
        "name": name,
        "video": given.video.model_copy(update={"size": found.image_size}),
        "model": ModelConfig.model_validate(
            {
                "backbone": backbone,
                "weights": weights,
                "temporal": found.temporal,
                "temporal_layers": found.temporal_layers,
            }
        ),
        "similarity": SimilarityConfig.model_validate({"kind": found.similarity, "wti_layers": found.wti_layers}),
        "knowledge": knowledge,
        "loss": LossConfig(),
        "train": TrainConfig.model_validate(training),
    }
    try:
        return ExperimentConfig.model_validate(given.model_copy(update=settings).model_dump())
    except ValueError as error:
        found_wrong = getattr(error, "errors", list)()
        if any(problem["loc"] == ("name",) for problem in found_wrong):
            raise ConfigError(
                f"--as {name!r} is no name of a run: use letters, digits, dots, dashes and underscores, and begin with a "
                "letter or a digit"
            ) from None
        lines = [problem["msg"].removeprefix("Value error, ") for problem in found_wrong]
        raise ConfigError("\n".join(lines) or str(error)) from None


def _is_backbone_of(found: FieldCheckpoint, given: ExperimentConfig) -> bool:
    try:
        named, own = (find_architecture(backbone) for backbone in (given.model.backbone, found.backbone))
    except BackboneError:
        return False
    return same_backbone(named, own)


def _default_config(found: FieldCheckpoint, overrides: Mapping[str, Any]) -> ExperimentConfig:
    """Returns defaults for a checkpoint without configuration; the data section names files that the user replaces.

    CLIP4Clip and DRL read a caption as it is, WAVER within the prompt of its phrases.
    """
    settings: dict[str, Any] = {
        "name": "imported",
        "data": {"format": "table", "annotations": "captions.jsonl", "videos": "videos"},
        "video": {"size": found.image_size},
    }
    if not found.fusion:
        settings["text"] = {"prompt": None}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "defaults.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return load_config(path, overrides)


def _describe_reading(config: ExperimentConfig) -> str:
    prompt = f"in the prompt {config.text.prompt!r}" if config.text.prompt else "without a prompt"
    video = config.video
    return (
        f"captions are read {prompt}, up to {config.text.max_words} tokens; videos with {video.frames_per_second:g} frames "
        f"a second, up to {video.max_frames}. If the model was trained with other settings, give them with --config"
    )
