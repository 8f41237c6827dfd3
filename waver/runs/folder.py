"""The folder of a run: what is in it, and whether it may be continued.

config.yaml         the resolved configuration
data.json           what it is trained on: counts, and a hash of the captions
environment.json    versions, hardware, git commit, command line
metrics.jsonl       a row a step, and one for each evaluation
events/             the same for TensorBoard
checkpoint_*/       the best (by validation t2v/R@1) and the two newest; see `checkpoint_name`
result.json         written when the run is finished
"""

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from waver.config import ExperimentConfig, load_config
from waver.runs.checkpoint import CheckpointError, is_whole
from waver.runs.environment import environment
from waver.runs.tracking import read_metrics
from waver.tools.errors import WaverError
from waver.tools.files import read_json, write_json, write_text
from waver.tools.object_store import display_path, exists, fetch, list_names, remove, upload_folder
from waver.tools.section import flatten

SELECTION_METRIC = "t2v/R@1"


class RunError(WaverError):
    """The folder of the run cannot be used as asked."""


def open_run(folder: Path, config: ExperimentConfig, data: Mapping[str, Any]) -> None:
    """Makes the folder of a new run, or checks that the run in it is the same one.

    Args:
        folder: of the run.
        config: of the experiment.
        data: what it is trained on, in figures that JSON can hold.

    Raises:
        RunError: where the folder holds what a run of another configuration, or on other data, has learned; says what
            differs.
    """
    check_run(folder, config, data)
    if finished(folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", config.to_yaml())
    write_json(folder / "data.json", dict(data))
    write_json(folder / "environment.json", environment())


def check_run(folder: Path, config: ExperimentConfig, data: Mapping[str, Any]) -> None:
    """What `open_run` checks; writes nothing.

    Raises:
        RunError: see there.
    """
    path = folder / "config.yaml"
    if exists(path) and (newest_checkpoint(folder) or finished(folder)):
        there, asked = flatten(load_config(path).identity()), flatten(config.identity())
        different = [
            f"{key}: {there.get(key)} there, {asked.get(key)} asked"
            for key in sorted(there.keys() | asked.keys())
            if there.get(key) != asked.get(key)
        ]
        if different:
            raise RunError(
                f"{display_path(folder)} holds a run of another configuration ({'; '.join(different)}): "
                "choose another name (--set name=...), or delete the folder"
            )
        before = read_json(folder / "data.json")
        if before != data and not finished(folder):
            raise RunError(
                f"{display_path(folder)} holds a run on other data ({before} then, {dict(data)} now): captions "
                f"changed, or clips "
                "were decoded or lost since; choose another name (--set name=...), or delete the folder"
            )


def finished(folder: Path) -> dict | None:
    """What the run came to, if it is finished."""
    path = fetch(folder / "result.json")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def checkpoint_name(epoch: int, step: int | None = None) -> str:
    """Name of the checkpoint after `epoch` whole epochs or, within the next, after `step` optimizer steps of the run.

    The names sort as the checkpoints were written.
    """
    return f"checkpoint_epoch_{epoch:04d}" + ("" if step is None else f"_step_{step:08d}")


def checkpoints(folder: Path) -> dict[int, Path]:
    """Epoch -> the checkpoint at its end, for those that are kept, oldest first."""
    return _epoch_ends(_whole_checkpoints(folder))


def newest_checkpoint(folder: Path) -> Path | None:
    """The one with which a run goes on, at the end of an epoch or within one; None where it has to begin."""
    newest_first = (folder / name for name in reversed(list_names(folder, "checkpoint_epoch_*")))
    return next(filter(is_whole, newest_first), None)


def keep_checkpoint(folder: Path, part: Path, name: str) -> Path:
    """Puts a checkpoint into the folder of its run, and removes those that are neither the best nor the two newest.

    The second newest is for a machine that loses power: what of the newest was not on the disk yet is then missing.

    Args:
        folder: of the run.
        part: folder below it that holds a checkpoint; it is renamed, so nobody sees half of one.
        name: of the checkpoint. One of that name was damaged, and is replaced.
    """
    target = folder / name
    remove(target)
    part.rename(target)
    upload_folder(target, last="config.yaml")
    whole = _whole_checkpoints(folder)
    kept = {path.name for path in whole[-2:]}
    if ends := _epoch_ends(whole):
        evaluated = [row for row in read_metrics(folder) if row.get("split") == "validation" and row["epoch"] in ends]
        # Until a disk that was full takes the metrics, all are kept.
        kept |= {ends[best_epoch(evaluated)[0]].name} if evaluated else {path.name for path in ends.values()}
    for old in list_names(folder, "checkpoint_epoch_*"):
        if old not in kept:
            with contextlib.suppress(OSError):  # what cannot be removed costs room, not the run
                remove(folder / old)
    return target


def describe_checkpoint(path: Path) -> str:
    """Where in its run a checkpoint was written, in words."""
    epoch, _, step = path.name.removeprefix("checkpoint_epoch_").partition("_step_")
    return f"step {int(step)}, in epoch {int(epoch) + 1}" if step else f"epoch {int(epoch)}"


def _epoch_ends(whole: Iterable[Path]) -> dict[int, Path]:
    ends = ((re.fullmatch(r"checkpoint_epoch_(\d+)", path.name), path) for path in whole)
    return {int(end[1]): path for end, path in ends if end}


def _whole_checkpoints(folder: Path) -> list[Path]:
    """Oldest first; what was damaged by a crash, a full disk or a copy that was cut short is none."""
    return [folder / name for name in list_names(folder, "checkpoint_epoch_*") if is_whole(folder / name)]


def best_checkpoint(folder: Path) -> tuple[Path, dict[str, float]]:
    """The checkpoint with the highest validation t2v/R@1 and its validation metrics; of equals the later.

    Raises:
        CheckpointError: where there is no run, or none of its checkpoints.
    """
    kept = checkpoints(folder)
    if not kept:
        what = "has no checkpoint yet" if exists(folder / "config.yaml") else "is neither a run nor a checkpoint"
        raise CheckpointError(f"{display_path(folder)} {what}: train it with `waver train CONFIG`")
    rows = [row for row in read_metrics(folder) if row.get("split") == "validation" and row["epoch"] in kept]
    if not rows:
        raise CheckpointError(
            f"{display_path(folder / 'metrics.jsonl')} tells of no evaluation: name one of its checkpoints instead"
        )
    epoch, metrics = best_epoch(rows)
    return kept[epoch], metrics


def best_epoch(rows: Iterable[Mapping[str, Any]]) -> tuple[int, dict[str, float]]:
    """(epoch, metrics) with the highest t2v/R@1, of equals the later.

    Args:
        rows: of validation, as `read_metrics` gives them; at least one.
    """
    best = max(rows, key=lambda row: (row[SELECTION_METRIC], row["epoch"]))
    return best["epoch"], {name: value for name, value in best.items() if name.startswith(("t2v/", "v2t/"))}


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that is meant by a path: itself, or the best one of a run."""
    return path if exists(path / "model.safetensors") else best_checkpoint(path)[0]
