"""Builds Ray Tune's tuner of the trials of a sweep, and records how each trial ends."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import PlacementGroupFactory
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from waver.on_ray.cluster.ray_internals import renew_tuner
from waver.on_ray.tuning.plan import Plan
from waver.on_ray.tuning.trial import SweepJob, run_trial
from waver.sweeps.folder import (
    TrialState,
    begin_trial,
    objective_history,
    read_if_written,
    read_trial,
    read_trials,
    trial_folder,
)
from waver.sweeps.results import end_runs
from waver.sweeps.suggest import Suggest
from waver.sweeps.then import keep_checkpoints
from waver.tools.files import write_json


def build_tuner(plan: Plan, at_once: int, gpus: float, numbers: Sequence[int]) -> tune.Tuner:
    """Builds the tuner of some trials of a sweep, or restores it if Optuna draws them and has begun to.

    Args:
        plan: plan of the search, or of the fine-tunings.
        at_once: how many trials run at the same time.
        gpus: GPUs of each worker.
        numbers: numbers of the trials.
    """
    sweep, resources = plan.sweep, plan.base.resources
    job = SweepJob(sweep, plan.folder, plan.points, gpus * resources.max_workers, plan.searched)
    one_worker = resources.max_workers == 1
    if one_worker:
        bundle = {"CPU": resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    else:  # the process of the trial only waits for Ray Train, which reserves the workers; it must not reserve CPUs itself
        bundle = {"CPU": 0, "node:__internal_head__": 0.001}
    placement = {"bundle_label_selector": [resources.node_labels]} if one_worker and resources.node_labels else {}
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, job=job), PlacementGroupFactory([bundle], **placement)
    )
    # If the trial's own process trains, Tune limits the number of trials by their resources, also when the cluster grows.
    # Resources that Ray Train reserves are unknown to Tune: the limit must be given.
    limit = sweep.max_concurrent if one_worker and not resources.loaders_per_worker else at_once
    callbacks = [_RecordOutcomes(job)]
    state = state_folder(plan, numbers)
    if any(state.glob("experiment_state*.json")):
        tuner = tune.Tuner.restore(str(state), trainable, resume_unfinished=True, resume_errored=False)
        renew_tuner(tuner, callbacks=callbacks, max_failures=sweep.max_failures, max_concurrent=limit)
        return tuner
    search = _optuna(plan, numbers) if plan.points is None else None
    return tune.Tuner(
        trainable,
        param_space=None if search else {"number": tune.grid_search(trials_left(plan, numbers))},
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=_scheduler(plan),
            num_samples=len(numbers) if search else 1,
            max_concurrent_trials=limit,
            reuse_actors=one_worker,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=state.name,
            storage_path=str(plan.folder),
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            callbacks=callbacks,
            verbose=0,
        ),
    )


def state_folder(plan: Plan, numbers: Sequence[int]) -> Path:
    """Returns the folder of Tune's state of some trials; those that num_samples added are an experiment of their own."""
    first = numbers[0] if plan.points is None else 0  # with points, one experiment has all trials
    return plan.folder / ("tune" if first == 0 else f"tune_{first:04d}")


def ended_trials(plan: Plan) -> list[TrialState]:
    """Returns the trials of a plan that have ended, as their files say."""
    states = (state for state in read_trials(plan.folder) if state.status != "running")
    return [state for state in states if plan.points is None or state.number in plan.points]


def trials_left(plan: Plan, numbers: Iterable[int]) -> list[int]:
    """Returns which of the trials have not ended."""
    ended = {state.number for state in ended_trials(plan)}
    return [number for number in numbers if number not in ended]


def _optuna(plan: Plan, numbers: Sequence[int]) -> OptunaSearch:
    """Builds the search that draws some trials, with the results of the trials before them."""
    sweep = plan.sweep
    search = OptunaSearch(
        space=Suggest(sweep.space, plan.base), metric="objective", mode=sweep.objective.mode, seed=sweep.seed
    )
    if numbers[0]:
        before = max(count for count in (0, *plan.sample_counts) if count < numbers[0])
        search.restore_from_dir(str(state_folder(plan, [before])))
    return search


@dataclass(frozen=True)
class _EndedTrial:
    """A trial as a scheduler sees it."""

    trial_id: str


def _scheduler(plan: Plan) -> ASHAScheduler | None:
    """Builds the scheduler of a sweep, which compares trials with those that have ended; None if it stops none."""
    sweep = plan.sweep
    num_epochs = max(config.train.epochs for config in plan.configs) * sweep.repeats
    if sweep.scheduler.kind != "asha" or sweep.scheduler.grace_epochs >= num_epochs:
        return None
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric="objective",
        mode=sweep.objective.mode,
        max_t=num_epochs,
        grace_period=sweep.scheduler.grace_epochs,
        reduction_factor=sweep.scheduler.reduction_factor,
    )
    controller: Any = None  # which this scheduler does not use
    for state in ended_trials(plan):
        trial: Any = _EndedTrial(f"ended_{state.number:04d}")
        scheduler.on_trial_add(controller, trial)
        for epoch, objective in objective_history(state, sweep.objective.metric):
            scheduler.on_trial_result(controller, trial, {"epoch": epoch, "objective": objective})
    return scheduler


def _trial_name(trial: Any) -> str:
    return f"trial_{trial.config['number']:04d}"


class _RecordOutcomes(tune.Callback):
    """Writes the outcome of each trial, and removes checkpoints of trials that are not among the best."""

    def __init__(self, job: SweepJob):
        self._job = job

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        runs = read_trial(self._folder(trial)).runs
        done = sum(run.finished for run in runs) == self._job.sweep.repeats
        self._end(trial, "finished" if done else "stopped", "")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        folder = self._folder(trial)
        message = read_if_written(folder / "failure.json").get("error")
        self._end(trial, "failed", message or _last_line(trial) or "its process was lost without an error message")

    def _folder(self, trial: Any) -> Path:
        number = trial.config["number"]
        folder = trial_folder(self._job.folder, number)
        if not (folder / "trial.json").exists():  # its process ended before `begin_trial`
            begin_trial(self._job.folder, number, self._job.point(trial.config))
        return folder

    def _end(self, trial: Any, status: str, error: str) -> None:
        folder = self._folder(trial)
        write_json(folder / "outcome.json", {"status": status, "error": error})
        if status != "finished":
            end_runs(read_trial(folder))
        keep_checkpoints(self._job.sweep_folder, self._job.sweep)


def _last_line(trial: Any) -> str:
    lines = str(trial.get_error() or "").strip().splitlines()
    return lines[-1] if lines else ""
