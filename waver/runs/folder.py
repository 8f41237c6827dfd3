"""Creates and reads the folder of a run, and checks whether the run may resume.

config.yaml         the resolved configuration
data.json           the data: counts, and hashes of captions and videos
environment.json    versions, hardware, git commit, command line
metrics.jsonl       one row per optimizer step and one per evaluation
events/             the same for TensorBoard
checkpoint_*/       the best checkpoint (by validation t2v/R@1) and the two newest; see `checkpoint_name`. All share one file
                    of the weights that training does not change, see `waver.runs.checkpoint_weights`
result.json         written when the run has finished; that of a model that waver did not train has an `origin`
writer-*.json       the lock of the process that trains the run, see `waver.tools.lock`
"""

import contextlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from waver.config import ExperimentConfig, load_config
from waver.evaluation.confidence import describe_rivals
from waver.runs.checkpoint import CheckpointError, is_complete
from waver.runs.checkpoint_weights import FROZEN_FILE, MODEL_FILE, frozen_digest_of
from waver.runs.environment import environment
from waver.runs.origin import kind_of, read_origin
from waver.runs.places import describe_place
from waver.runs.tracking import read_metrics
from waver.tools.errors import WaverError
from waver.tools.files import read_json, write_json, write_text
from waver.tools.object_store import display_path, exists, fetch, list_names, remote_of, remove, upload_folder
from waver.tools.section import describe_differences, flatten

SELECTION_METRIC = "t2v/R@1"
ZERO_SHOT_SPLIT = "validation, zero-shot"
"""`split` of the row of metrics.jsonl for epoch 0: the backbone before training. It is no evaluation of the run's model, so
whoever chooses among the rows of `validation` never sees it."""


class RunError(WaverError):
    """Raised if a run folder holds a run of another configuration or on other data."""


def open_run(folder: Path, config: ExperimentConfig, data: Mapping[str, Any]) -> None:
    """Creates the folder of a new run, or checks that an existing run has the same configuration and data.

    Args:
        folder: run folder.
        config: configuration of the experiment.
        data: description of the training data, as a JSON object.

    Raises:
        RunError: if the folder holds a checkpoint or result of another configuration, or of other data; names the
            differences.
    """
    check_run(folder, config, data)
    if read_result(folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", config.to_yaml())
    write_json(folder / "data.json", dict(data))
    write_json(folder / "environment.json", environment())


def check_run(folder: Path, config: ExperimentConfig, data: Mapping[str, Any]) -> None:
    """Performs the check of `open_run` without writing anything.

    Raises:
        RunError: see `open_run`.
    """
    if kind := untrained_kind(folder):
        raise RunError(
            f"{display_path(folder)} holds a model that waver did not train ({kind}): choose another name (--set name=...)"
        )
    path = folder / "config.yaml"
    if exists(path) and (newest_checkpoint(folder) or read_result(folder)):
        there, asked = flatten(load_config(path, stored=True).identity()), flatten(config.identity())
        if different := describe_differences(there, asked):
            raise RunError(
                f"{display_path(folder)} holds a run of another configuration ({'; '.join(different)}): "
                "choose another name (--set name=...), or delete the folder"
            )
        if not read_result(folder) and (changes := changed_data(folder, data)):
            raise RunError(
                f"{display_path(folder)} holds a run on other data ({changes}), because captions or decoded clips have "
                "changed: choose another name (--set name=...), or delete the folder"
            )


def untrained_kind(folder: Path) -> str:
    """Returns `zero-shot` or `imported` for the run of a model that waver did not train, even an unfinished one; else ""."""
    if (result := read_result(folder)) is not None:
        kind = kind_of(result)
        return "" if kind == "trained" else kind
    newest = newest_checkpoint(folder)
    origin = read_origin(newest) if newest else None
    return origin.kind if origin else ""


def changed_data(folder: Path, data: Mapping[str, Any]) -> str:
    """Says in which entries the data of a run differs from that which it was trained on; empty if in none.

    Args:
        folder: run folder.
        data: description of the data as it is now. Entries that an older version of waver did not write, or could not
            compute, do not count.
    """
    if not exists(folder / "data.json"):
        return ""
    before = read_json(folder / "data.json")
    known = [name for name in before if before[name] is not None and data.get(name) is not None]
    different = [name for name in known if before[name] != data[name]]
    return ", ".join(f"{name}: {before[name]!r} then, {data[name]!r} now" for name in different)


def read_result(folder: Path) -> dict[str, Any] | None:
    """Returns the content of result.json; None if the run has not finished."""
    path = fetch(folder / "result.json")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def checkpoint_name(epoch: int, step: int | None = None) -> str:
    """Names a checkpoint; names sort in the order in which the checkpoints are written.

    Args:
        epoch: number of complete epochs.
        step: number of optimizer steps since the start of the run if the checkpoint is within an epoch, else None.
    """
    return f"checkpoint_epoch_{epoch:04d}" + ("" if step is None else f"_step_{step:08d}")


def checkpoints(folder: Path) -> dict[int, Path]:
    """Returns the existing checkpoints at the end of an epoch as epoch -> folder, oldest first."""
    return _epoch_ends(_complete_checkpoints(folder))


def newest_checkpoint(folder: Path) -> Path | None:
    """Returns the checkpoint from which a run resumes; None if there is none."""
    newest_first = (folder / name for name in reversed(list_names(folder, "checkpoint_epoch_*")))
    return next(filter(is_complete, newest_first), None)


def keep_checkpoint(folder: Path, part: Path, name: str) -> Path:
    """Moves a checkpoint into its run folder, and removes all checkpoints but the best and the two newest.

    The second newest is kept because a power failure can truncate the newest, which may not be on the disk yet.

    Args:
        folder: run folder.
        part: folder inside it that holds the checkpoint, either a temporary one or the checkpoint under its former name.
            It is renamed, so that the checkpoint appears complete.
        name: name of the checkpoint; replaces a damaged checkpoint of that name.

    Returns:
        The folder of the checkpoint.
    """
    target = folder / name
    former = {file: part / file for file in list_names(part)} if remote_of(folder) else {}
    remove(target)
    part.rename(target)
    if remote_of(folder):  # an object store cannot rename, but copies what it has already
        upload_folder(target, last="config.yaml", copies=former or _shared_files(folder, target))
        remove(part)
    complete = _complete_checkpoints(folder)
    kept = {path.name for path in complete[-2:]}
    if ends := _epoch_ends(complete):
        evaluated = [row for row in read_metrics(folder) if row.get("split") == "validation" and row["epoch"] in ends]
        # Without metrics, which a full disk can delay, the best is unknown, so all are kept.
        kept |= {ends[best_epoch(evaluated)[0]].name} if evaluated else {path.name for path in ends.values()}
    for old in list_names(folder, "checkpoint_epoch_*"):
        if old not in kept:
            with contextlib.suppress(OSError):  # an old checkpoint that stays must not stop the run
                remove(folder / old)
    return target


def _shared_files(folder: Path, checkpoint: Path) -> dict[str, Path]:
    """Returns the frozen weights of another checkpoint of a run that a new one shares, by name; empty if there is none."""
    digest = frozen_digest_of(checkpoint)
    others = (folder / name for name in reversed(list_names(folder, "checkpoint_epoch_*")))
    same = (path / FROZEN_FILE for path in others if digest and path != checkpoint and frozen_digest_of(path) == digest)
    shared = next(same, None)
    return {FROZEN_FILE: shared} if shared else {}


def completed_epochs(path: Path) -> int:
    """Returns the number of epochs of a run that were complete, with their evaluation, at a checkpoint."""
    return int(path.name.removeprefix("checkpoint_epoch_").partition("_step_")[0])


def describe_checkpoint(path: Path) -> str:
    """Returns the position of a checkpoint in its run in words, such as `epoch 2` or `step 300, in epoch 3`."""
    epoch, step = completed_epochs(path), path.name.partition("_step_")[2]
    return f"step {int(step)}, in epoch {epoch + 1}" if step else f"epoch {epoch}"


def _epoch_ends(paths: Iterable[Path]) -> dict[int, Path]:
    matches = ((re.fullmatch(r"checkpoint_epoch_(\d+)", path.name), path) for path in paths)
    return {int(match[1]): path for match, path in matches if match}


def _complete_checkpoints(folder: Path) -> list[Path]:
    """Lists the checkpoints that no crash, full disk or interrupted copy has truncated, oldest first."""
    return [folder / name for name in list_names(folder, "checkpoint_epoch_*") if is_complete(folder / name)]


def best_checkpoint(folder: Path) -> tuple[Path, dict[str, float]]:
    """Returns the checkpoint with the highest validation t2v/R@1, the later one of a tie, and its validation metrics.

    The run of a model that waver did not train has one checkpoint, without metrics.

    Raises:
        CheckpointError: if the folder holds no run, or a run without checkpoint or validation metrics.
    """
    kept = checkpoints(folder)
    if not kept:
        raise CheckpointError(_without_checkpoint(folder))
    if untrained_kind(folder):
        return next(iter(kept.values())), {}
    rows = [row for row in read_metrics(folder) if row.get("split") == "validation" and row["epoch"] in kept]
    if not rows:
        raise CheckpointError(
            f"{display_path(folder / 'metrics.jsonl')} has no validation metrics: name a checkpoint of the run instead"
        )
    epoch, metrics = best_epoch(rows)
    return kept[epoch], metrics


def _without_checkpoint(folder: Path) -> str:
    if not exists(folder / "config.yaml"):
        return describe_place(folder)
    if exists(folder.parent / "trial.json"):
        return f"{display_path(folder)} has no checkpoint: a sweep keeps those of its best trials (keep_best)"
    return (
        f"{display_path(folder)} has no checkpoint yet: train it with "
        f"`waver train {shlex.quote(str(folder / 'config.yaml'))}`"
    )


def best_epoch(rows: Iterable[Mapping[str, Any]]) -> tuple[int, dict[str, float]]:
    """Returns the epoch with the highest t2v/R@1, the later one of a tie, and its metrics.

    Args:
        rows: validation rows from `read_metrics`, at least one.
    """
    best = max(rows, key=lambda row: (row[SELECTION_METRIC], row["epoch"]))
    return best["epoch"], _retrieval_metrics(best)


def _retrieval_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith(("t2v/", "v2t/"))}


def rivals_of_best(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Says which epochs tie with the best, or are within its standard error, see `describe_rivals`.

    Args:
        rows: validation rows from `read_metrics`, at least one; those of earlier versions of waver have no gallery size.
    """
    best, last = best_epoch(rows)[0], {row["epoch"]: row for row in rows}
    return describe_rivals(
        {epoch: row[SELECTION_METRIC] for epoch, row in last.items()},
        best,
        SELECTION_METRIC,
        what="epoch",
        num_clips=last[best].get("gallery_size"),
        num_captions=last[best].get("num_queries"),
    )


def zero_shot_metrics(folder: Path) -> dict[str, float] | None:
    """Returns the validation metrics of epoch 0, those of the backbone before training; None if the run has none."""
    rows = [row for row in read_metrics(folder) if row.get("split") == ZERO_SHOT_SPLIT]
    return _retrieval_metrics(rows[-1]) if rows else None


def find_checkpoint(path: Path) -> Path:
    """Returns `path` if it is a checkpoint, else the best checkpoint of the run in `path`."""
    return path if exists(path / MODEL_FILE) else best_checkpoint(path)[0]
