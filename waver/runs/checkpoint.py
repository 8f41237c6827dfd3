"""Writes and reads checkpoints.

model.safetensors   weights that training changes, see `waver.runs.checkpoint_weights`
frozen.safetensors  weights that it does not change, if there are any
training.pt         everything else that resuming needs
config.yaml         the resolved configuration
knowledge.json      summary of the knowledge that the model was trained with; null if it was trained without
origin.json         instead of training.pt, for a model that waver did not train: its origin, see `waver.runs.origin`

The position in the data is stored as a number of caption rows. The order of the rows in each epoch follows from captions and
seed (`waver.data.epochs`), so a run can resume at its position with any number of workers.

No file is unpickled, so it is safe to open a checkpoint from an untrusted source.
"""

import contextlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from waver.config import ExperimentConfig, load_config
from waver.knowledge.store import Knowledge
from waver.model.errors import BackboneError
from waver.model.pretrained.activation import EXACT, METADATA, QUICK, Activation, set_activation
from waver.model.pretrained.weight_files import read_metadata
from waver.model.pretrained.weights import activation_of, check_finite, find_weights
from waver.model.student import Student
from waver.runs.checkpoint_weights import (
    MODEL_FILE,
    CheckpointError,
    check_finite_weights,
    is_model_complete,
    load_checkpoint_weights,
    save_weights,
)
from waver.runs.origin import ORIGIN_FILE, Origin, OriginError, read_origin
from waver.tools.archives import check_size
from waver.tools.object_store import display_path, fetch, list_names, remote_of
from waver.training import parallel
from waver.training.build import Training, build_student


def save_checkpoint(
    folder: Path,
    training: Training,
    config: ExperimentConfig,
    knowledge: Knowledge | None = None,
    *,
    previous: Path | None = None,
) -> None:
    """Writes a checkpoint. Every worker must call it, because their random states are gathered; the first worker writes.

    Args:
        folder: folder of the checkpoint.
        training: state of the run.
        config: configuration of the experiment.
        knowledge: phrases of the clips; None for none.
        previous: the checkpoint that the run wrote before or resumed from, whose frozen weights are shared; None for none.
    """
    rng = parallel.gather_objects(_rng_state())
    if parallel.rank() != 0:
        return
    _save_model(folder, training.student, config, knowledge, previous)
    state = {
        "step": training.step,
        "rows": training.rows,
        "optimizer": training.optimizer.state_dict(),
        "schedule": training.schedule.state_dict(),
        "rng": rng,
    }
    torch.save(state, folder / "training.pt")


def save_untrained(folder: Path, student: Student, config: ExperimentConfig, origin: Origin) -> None:
    """Writes the checkpoint of a model that waver did not train; no run can resume from it."""
    _save_model(folder, student, config, None)
    (folder / ORIGIN_FILE).write_text(json.dumps(origin.as_json(), indent=2), encoding="utf-8")


def _save_model(
    folder: Path,
    student: Student,
    config: ExperimentConfig,
    knowledge: Knowledge | None,
    previous: Path | None = None,
) -> None:
    """Writes weights, configuration and the summary of the knowledge."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(student, folder, previous=previous)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    (folder / "knowledge.json").write_text(json.dumps(knowledge.summary() if knowledge else None), encoding="utf-8")


def restore_training(folder: Path, training: Training) -> None:
    """Restores the state of training from a checkpoint, which may have been written within an epoch.

    Random states are restored only if the number of workers has not changed. The number of epochs stands in the name of the
    checkpoint, see `waver.runs.folder.completed_epochs`.

    Raises:
        CheckpointError: if a file is missing or damaged, the weights are of another architecture, or a value is not finite.
    """
    _load_weights(training.student, folder)
    state = _read_state(folder)
    training.optimizer.load_state_dict(state["optimizer"])
    training.schedule.load_state_dict(state["schedule"])
    training.step, training.rows = state["step"], state["rows"]
    if len(state["rng"]) == parallel.world_size():
        _set_rng_state(state["rng"][parallel.rank()])


def restore_weights(folder: Path, student: Student) -> None:
    """Loads the weights of a checkpoint into a student, and nothing else of the run.

    Raises:
        CheckpointError: if a file is missing or damaged, the weights are of another architecture, or a value is not finite.
    """
    _load_weights(student, folder)


def load_student(folder: Path, config: ExperimentConfig) -> Student:
    """Builds the model of a configuration and loads the weights of a checkpoint into it.

    Args:
        folder: checkpoint folder.
        config: configuration of the checkpoint, see `checkpoint_config`.

    Raises:
        CheckpointError: if a file is missing or damaged, the weights are of another architecture, or a value is not finite;
            with adapters, also if model.weights cannot be read, or holds other weights than those of the training.
    """
    with _as_checkpoint_error(_frozen_hint(folder, config)):
        student = build_student(config, config.model.weights if config.model.lora else None)
    _load_weights(student, folder)
    return student


def check_weights(folder: Path, config: ExperimentConfig) -> None:
    """Performs the checks of `load_student` without reading or computing weights: by their names and sizes.

    Raises:
        CheckpointError: see `load_student`.
    """
    with torch.device("meta"), _as_checkpoint_error(_frozen_hint(folder, config)):
        student = build_student(config)
        if config.model.lora and config.model.weights:
            find_weights(config.model.backbone, config.model.weights)
    _load_weights(student, folder, sizes_only=True)


def checkpoint_config(folder: Path, overrides: Mapping[str, Any] | None = None) -> ExperimentConfig:
    """Returns the configuration that a checkpoint was trained with, except `storage.cache`, which belongs to a machine.

    Args:
        folder: checkpoint folder.
        overrides: dotted key -> value.

    Raises:
        CheckpointError: if the folder holds no checkpoint.
        ConfigError: if an override is invalid.
    """
    path = fetch(folder / "config.yaml")
    if not path.is_file():
        raise CheckpointError(f"{display_path(folder)} is not a checkpoint: it has no config.yaml")
    return load_config(path, {"storage.cache": None} | dict(overrides or {}), stored=True)


def stored_activation(folder: Path) -> Activation:
    """Returns the activation of a checkpoint's model, with its source.

    Checkpoints of older versions do not contain it. For them it is the activation of the weights that training started
    from; if these weights are gone, the one that the configuration names.

    Raises:
        CheckpointError: if the folder holds no checkpoint.
    """
    told = read_metadata(fetch(folder / MODEL_FILE)).get(METADATA)
    if told is not None:
        return Activation(QUICK if told == "true" else EXACT, f"from {display_path(folder)}")
    model = checkpoint_config(folder).model
    with _as_checkpoint_error():
        try:
            return activation_of(model.backbone, model.weights)
        except BackboneError as error:
            named = activation_of(model.backbone, None)
            return named._replace(
                origin=f"{named.origin}, since the weights that it started from cannot be read ({error})"
            )


def checkpoint_knowledge(folder: Path) -> dict[str, Any] | None:
    """Returns the summary of the knowledge that a model was trained with, see `Knowledge.summary`; None if without.

    Raises:
        CheckpointError: if knowledge.json is missing or damaged.
    """
    path = fetch(folder / "knowledge.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{display_path(path)} cannot be read ({error}), so it is unknown what {display_path(folder)} was trained "
            "with: copy the checkpoint again, completely"
        ) from error


def check_dictionary(knowledge: Knowledge, checkpoint: Path) -> None:
    """Checks that a model was trained with the dictionary of some knowledge.

    The file of an imported model does not contain its dictionary, so this model is not checked: it accepts any phrases.

    Raises:
        KnowledgeError: if it was trained with another dictionary, or without knowledge.
        CheckpointError: if a file of the checkpoint is missing or damaged.
    """
    if read_origin(checkpoint) is None:
        knowledge.check_same_dictionary(checkpoint, checkpoint_knowledge(checkpoint))


def is_complete(folder: Path) -> bool:
    """Returns whether all files of a checkpoint exist and none is truncated, except frozen.safetensors.

    Both formats allow this without reading values: safetensors checks the size, and a zip file ends in its index.
    """
    if remote_of(folder):  # an object store never holds a truncated file, and config.yaml is uploaded last
        names = set(list_names(folder))
        return names >= {MODEL_FILE, "knowledge.json", "config.yaml"} and bool(names & {"training.pt", ORIGIN_FILE})
    try:
        checkpoint_knowledge(folder)
        begun = zipfile.is_zipfile(folder / "training.pt") or read_origin(folder) is not None
        return begun and (folder / "config.yaml").is_file() and is_model_complete(folder)
    except (OSError, CheckpointError, OriginError):
        return False


def check_values(folder: Path) -> None:
    """Checks that no value in a checkpoint, of the model or the optimizer, is NaN or infinite.

    Raises:
        CheckpointError: if one is; names file and tensors. Also if a file is missing or damaged.
    """
    check_finite_weights(folder)
    _read_state(folder)


def _load_weights(student: Student, folder: Path, *, sizes_only: bool = False) -> None:
    with _as_checkpoint_error():
        load_checkpoint_weights(student, folder, sizes_only=sizes_only)
    if not sizes_only:
        set_activation(student.backbone, quick=stored_activation(folder).name == QUICK)


def _frozen_hint(folder: Path, config: ExperimentConfig) -> str:
    """Returns what to do if the model of a checkpoint cannot be built; empty if its file has all weights."""
    if not config.model.lora:
        return ""
    return (
        f"{display_path(folder)} holds adapters (model.lora) without the pre-trained weights that they add to: put these "
        f"where model.weights names them, or change model.weights in {display_path(folder / 'config.yaml')}: "
    )


def _read_state(folder: Path) -> dict[str, Any]:
    """Reads everything but the weights."""
    path = fetch(folder / "training.pt")
    try:
        check_size(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = {name: state[name] for name in ("step", "rows", "optimizer", "schedule", "rng")}
        moments = {
            f"{name} of parameter {number}": value
            for number, values in state["optimizer"]["state"].items()
            for name, value in values.items()
            if isinstance(value, torch.Tensor)
        }
    except Exception as error:  # torch raises its own types, zipfile's, pickle's and OSError for a damaged file
        raise CheckpointError(
            f"{display_path(path)} cannot be read ({type(error).__name__}: {_first_line(error)})"
        ) from error
    with _as_checkpoint_error():
        check_finite(moments, source=display_path(path))
    return state


@contextlib.contextmanager
def _as_checkpoint_error(hint: str = "") -> Iterator[None]:
    """Turns a BackboneError of the body into a CheckpointError, whose message begins with the hint."""
    try:
        yield
    except BackboneError as error:
        raise CheckpointError(f"{hint}{error}") from error


def _rng_state() -> dict[str, Any]:
    name, keys, position, has_gauss, gauss = np.random.get_state()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
    }


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
