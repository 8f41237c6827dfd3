"""Hands the best trials of a sweep to fine-tuning: chooses them, and decides which checkpoints the sweep keeps.

The folder `then/` of a sweep has a folder for each fine-tuned trial. It has the number of the searched trial, and the
files of a trial (see `waver.sweeps.folder`). Each run in it starts from the best checkpoint that the searched trial has
of the same seed.
"""

from collections.abc import Sequence
from pathlib import Path

from waver.config import ExperimentConfig, SweepConfig, load_config
from waver.runs.folder import best_checkpoint, checkpoints, newest_checkpoint, read_result
from waver.sweeps.folder import (
    SweepError,
    TrialState,
    drop_checkpoints,
    read_trials,
    run_folder,
    trial_folder,
)
from waver.sweeps.ranking import rank_trials
from waver.tools.names import counted
from waver.tools.section import describe_differences, flatten


def then_folder(folder: Path) -> Path:
    """Returns the folder of the fine-tuned trials of a sweep."""
    return folder / "then"


def read_fine_tuned(folder: Path, sweep: SweepConfig, *, runs: bool = True) -> list[TrialState]:
    """Reads the fine-tuned trials of a sweep, also those of trials that are not among the best any more.

    Args:
        folder: folder of the sweep.
        sweep: configuration of the sweep.
        runs: see `read_trials`.
    """
    return read_trials(then_folder(folder), runs=runs) if sweep.then else []


def choose_trials(states: Sequence[TrialState], sweep: SweepConfig) -> list[TrialState]:
    """Returns the trials to fine-tune: the `then.keep` best finished ones, the best first."""
    keep = sweep.then.keep if sweep.then else 0
    return [state for state in rank_trials(states, sweep) if state.status == "finished"][:keep]


def fine_tuned_config(folder: Path, sweep: SweepConfig, trial: TrialState, seed: int) -> ExperimentConfig:
    """Returns the experiment that fine-tunes one seed of a trial.

    Args:
        folder: folder of the sweep.
        sweep: configuration of the sweep.
        trial: the searched trial.
        seed: the seed.

    Raises:
        CheckpointError: if the checkpoints of the trial are gone.
    """
    assert sweep.then is not None, "the sweep hands trials to fine-tuning"
    name = f"{sweep.name}-then-{trial.number:04d}-seed{seed}"
    start = start_of(folder, trial.number, seed)
    overrides = {**trial.point, **sweep.then.changes, "name": name, "seed": seed, "train.start_from": str(start)}
    return load_config(folder / "base.yaml", overrides, stored=True)


def start_of(folder: Path, number: int, seed: int) -> Path:
    """Returns the checkpoint from which the fine-tuning of a seed starts; once it has begun, even if that is gone.

    Raises:
        CheckpointError: if it is gone, and the fine-tuning has not begun.
    """
    begun = run_folder(trial_folder(then_folder(folder), number), seed) / "config.yaml"
    if begun.exists() and (start := load_config(begun, stored=True).train.start_from):
        return start
    return best_checkpoint(run_folder(trial_folder(folder, number), seed))[0]


def keep_checkpoints(folder: Path, sweep: SweepConfig) -> None:
    """Removes the checkpoints of ended trials that nothing needs.

    Keeps the checkpoints of the `keep_best` best searched trials, of the `keep_best` best fine-tuned ones, of trials
    that wait for fine-tuning, and those from which the best fine-tuned trials started.
    """
    searched, tuned = read_trials(folder), read_fine_tuned(folder, sweep)
    best_tuned = _best(tuned, sweep)
    done = {state.number for state in tuned if state.status == "finished"}
    waiting = [state for state in choose_trials(searched, sweep) if state.number not in done]
    kept = [*_best(searched, sweep), *waiting]
    numbers = {state.number for state in (*kept, *best_tuned)}
    for state in searched:
        if state.status != "running" and state.number not in numbers:
            drop_checkpoints(state.folder)
    for state in tuned:
        if state.status != "running" and state not in best_tuned:
            drop_checkpoints(state.folder)


def _best(states: Sequence[TrialState], sweep: SweepConfig) -> list[TrialState]:
    return [state for state in rank_trials(states, sweep) if state.status == "finished"][: sweep.keep_best]


def check_then(folder: Path, sweep: SweepConfig) -> None:
    """Checks that the best trials of a sweep that has begun can be fine-tuned as its configuration says.

    Args:
        folder: folder of the sweep.
        sweep: configuration of the sweep.

    Raises:
        SweepError: if existing fine-tuned trials had other settings, or checkpoints of the best trials are gone.
    """
    if sweep.then is None or not (folder / "base.yaml").exists():
        return
    searched = {state.number: state for state in read_trials(folder)}
    tuned = read_fine_tuned(folder, sweep)
    runs = [(state, run) for state in tuned if state.number in searched for run in state.runs]
    for state, run in runs:
        # A run that has not got to a checkpoint begins again.
        is_kept = state.status != "running" or read_result(run.folder) or newest_checkpoint(run.folder)
        if not is_kept or not (run.folder / "config.yaml").exists():
            continue
        there = load_config(run.folder / "config.yaml", stored=True)
        asked = fine_tuned_config(folder, sweep, searched[state.number], run.seed)
        if different := describe_differences(flatten(there.identity()), flatten(asked.identity())):
            raise SweepError(
                f"{then_folder(folder)} holds trials that were fine-tuned otherwise ({'; '.join(different)}): delete this "
                "folder to fine-tune again, or choose another name for the sweep (--set name=...)"
            )
    begun = {state.number for state in tuned}
    gone = [
        state.number
        for state in choose_trials(list(searched.values()), sweep)
        if state.number not in begun and not all(checkpoints(run.folder) for run in state.runs)
    ]
    if gone:
        raise SweepError(
            f"then.keep = {sweep.then.keep}, but the checkpoints of {counted(len(gone), 'trial')} among the best are gone "
            f"(trial {', '.join(map(str, gone))}), because the sweep kept those of keep_best trials: lower then.keep, or "
            "repeat the sweep under another name (--set name=...)"
        )
