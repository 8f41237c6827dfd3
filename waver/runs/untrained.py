"""Makes runs of models that waver did not train, so that they can be evaluated, searched and compared like any run."""

import hashlib
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from waver.config import ExperimentConfig
from waver.model.backbone import Backbone
from waver.model.pretrained.weight_files import files_of
from waver.model.pretrained.weights import find_weights
from waver.model.student import Student
from waver.runs.checkpoint import checkpoint_config, save_untrained
from waver.runs.environment import environment
from waver.runs.folder import RunError, checkpoint_name, checkpoints, newest_checkpoint, read_result
from waver.runs.origin import Origin, kind_of, read_origin
from waver.runs.tracking import Tracker, read_metrics
from waver.runs.tracking.hparams import comparable_settings, write_best, write_hparams, write_session_end
from waver.runs.tracking.tags import tag_of
from waver.runs.tracking.texts import config_text, model_text, origin_text
from waver.tools.files import sha256_of, write_json, write_text
from waver.tools.object_store import display_path, remove, upload_folder
from waver.tools.section import describe_differences, flatten
from waver.training.build import build_student
from waver.training.zero_shot import zero_shot_config


def zero_shot_experiment(config: ExperimentConfig) -> ExperimentConfig:
    """Returns the experiment of the zero-shot run: the same data with the backbone alone, named `<name>-zero-shot`.

    Raises:
        RunError: if the experiment has no pre-trained weights.
    """
    if config.model.weights is None:
        raise RunError(
            "model.weights = null: a backbone with random weights has no zero-shot figures. Name a file or a pretrained tag "
            "(--set model.weights=...), or evaluate a run: waver evaluate RUN"
        )
    return zero_shot_config(config).model_copy(update={"name": f"{config.name}-zero-shot"})


def make_zero_shot_run(config: ExperimentConfig) -> Path:
    """Makes the zero-shot run of a backbone, or finds it if it was made before.

    Args:
        config: from `zero_shot_experiment`.

    Returns:
        The folder of its only checkpoint.

    Raises:
        RunError: if the folder holds another run.
        BackboneError: if the weights cannot be loaded.
    """
    assert config.model.weights is not None, "zero_shot_experiment has checked it"
    source = find_weights(config.model.backbone, config.model.weights)
    file = source if isinstance(source, Path) else None
    sha256 = _hash_of(file) if file else None
    student = build_student(config, config.model.weights)
    origin = Origin("zero-shot", _describe_backbone(config, student.backbone), file.name if file else None, sha256)
    if (made := _made_before(config, origin)) is not None:
        return made
    return make_run(config, student, origin)


def _hash_of(file: Path) -> str:
    """Returns the SHA-256 of a file of weights; of a snapshot in parts, that of the hashes of its index and of its parts."""
    if (parts := files_of(file)) == [file]:
        return sha256_of(file)
    return hashlib.sha256("".join(map(sha256_of, [file, *parts])).encode()).hexdigest()


def make_run(config: ExperimentConfig, student: Student, origin: Origin) -> Path:
    """Makes the run of a model that waver did not train, with one checkpoint; returns the folder of the checkpoint.

    Raises:
        RunError: if the run folder exists already.
    """
    folder = config.run_folder
    check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    part, name = folder / ".checkpoint.part", checkpoint_name(0)
    shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
    save_untrained(part, student, config, origin)
    remove(folder / name)
    part.rename(folder / name)
    upload_folder(folder / name, last="config.yaml")
    write_text(folder / "config.yaml", config.to_yaml())
    write_json(folder / "data.json", {})  # none of the data was trained on
    write_json(folder / "environment.json", environment())
    _write_events(folder, config, student, origin)
    # Last: with it, the run is complete.
    write_json(
        folder / "result.json",
        {"origin": origin.as_json(), "epochs": 0, "steps": 0, "best_checkpoint": name, "config": config.digest()},
    )
    return folder / name


def check_free(folder: Path) -> None:
    """Checks that the folder of a new run holds no run yet; what an interrupted attempt left there does not count.

    Raises:
        RunError: if it holds a run.
    """
    if (result := read_result(folder)) is not None or _was_trained(folder):
        kind = kind_of(result or {})
        raise RunError(
            f"{display_path(folder)} holds a run already ({kind}): choose another name, or delete the folder"
        )


def record_metrics(folder: Path, metrics: Mapping[str, float]) -> None:
    """Writes the validation metrics of a model that waver did not train to TensorBoard: as epoch 0, and for HParams."""
    with Tracker(folder) as tracker:
        for name, value in metrics.items():
            tracker.write_events(lambda events, name=name, value=value: events.add_scalar(tag_of(name), value, 0))
        tracker.write_events(lambda events: write_best(events, 0, metrics))


def _was_trained(folder: Path) -> bool:
    newest = newest_checkpoint(folder)
    return bool(read_metrics(folder)) or (newest is not None and read_origin(newest) is None)


def _made_before(config: ExperimentConfig, origin: Origin) -> Path | None:
    """Returns the checkpoint of the same zero-shot run, if it was made before.

    Raises:
        RunError: if the folder holds another run.
    """
    folder = config.run_folder
    result = read_result(folder)
    if kind_of(result or {}) != "zero-shot":
        return None  # make_run refuses a run of another kind
    checkpoint = next(iter(checkpoints(folder).values()), None)
    if checkpoint is None:
        raise RunError(
            f"{display_path(folder)} is a zero-shot run without its checkpoint: delete the folder, and evaluate again"
        )
    there = read_origin(checkpoint)
    then, now = (flatten(each.identity()) for each in (checkpoint_config(checkpoint), config))
    different = describe_differences(then, now)
    if there is not None and there.sha256 != origin.sha256:
        different = [*different, f"another file of weights: SHA-256 {there.sha256} there, {origin.sha256} now"]
    if different:
        raise RunError(
            f"{display_path(folder)} holds the zero-shot run of another configuration ({'; '.join(different)}): choose "
            "another name (--set name=...), or delete the folder"
        )
    return checkpoint


def _describe_backbone(config: ExperimentConfig, backbone: Backbone) -> str:
    name = config.model.backbone if isinstance(config.model.backbone, str) else "a backbone of its own architecture"
    vision, text = (backbone.architecture.get(part, {}) for part in ("vision_cfg", "text_cfg"))
    own_towers = "timm_model_name" not in vision and "hf_model_name" not in text
    activation = f" ({'QuickGELU' if backbone.architecture.get('quick_gelu') else 'GELU'})" if own_towers else ""
    weights = Path(str(config.model.weights)).name
    prompt = f"prompt {config.text.prompt!r}" if config.text.prompt else "no prompt"
    return f"{name}{activation} with weights {weights}, mean of the frames, {prompt}, nothing trained"


def _write_events(folder: Path, config: ExperimentConfig, student: Student, origin: Origin) -> None:
    """Writes what TensorBoard shows of the run: its origin, configuration and model."""
    settings, now_s = config.model_dump(mode="json"), time.time()
    texts = {
        "origin": origin_text(origin.as_json()),
        "configuration": config_text(settings),
        "model": model_text(student),
    }
    with Tracker(folder) as tracker:
        for name, text in texts.items():
            tracker.write_events(lambda events, name=name, text=text: events.add_text(name, text, 0))
        shown = {"origin": origin.kind, **comparable_settings(settings)}
        tracker.write_events(lambda events: write_hparams(events, shown, start_s=now_s))
        tracker.write_events(lambda events: write_session_end(events, end_s=now_s))
