"""Runs a sweep over the keys of an experiment with Ray Tune (`waver tune`)."""

import dataclasses
import logging
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import PlacementGroupFactory
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from ray.util.state import list_placement_groups
from ray.util.state.exception import RayStateApiException
from rich.table import Table

from waver.config import SweepConfig
from waver.evaluation.confidence import find_small_validation
from waver.on_ray.cluster.capacity import WorkerResources, local_cpus, require_capacity
from waver.on_ray.cluster.connection import connect, gpus_per_worker, nodes
from waver.on_ray.cluster.ray_internals import renew_tuner
from waver.on_ray.stages.start import check_trials
from waver.on_ray.tuning.plan import Plan, trials_at_once
from waver.on_ray.tuning.shared import make_shared
from waver.on_ray.tuning.trial import SweepJob, run_trial
from waver.runs.inputs import load_captions
from waver.sweeps.extension import open_sweep
from waver.sweeps.folder import (
    SweepError,
    TrialState,
    begin_trial,
    drop_checkpoints,
    objective_history,
    read_if_written,
    read_trial,
    read_trials,
    trial_folder,
)
from waver.sweeps.progress import follow_sweep
from waver.sweeps.results import end_runs, rank_trials, write_results
from waver.sweeps.suggest import Suggest
from waver.tools.files import write_json
from waver.tools.lock import hold_lock

logger = logging.getLogger(__name__)

_TUNE = "tune"
_DASHBOARD_S = 20
_INTERRUPTED = "the sweep was stopped; run the same command again to resume it"


def run_sweep(plan: Plan, *, print_table: Callable[[Table], None]) -> list[TrialState]:
    """Runs or resumes a sweep, and writes its results even if it is interrupted.

    Args:
        plan: plan of the sweep.
        print_table: called with the table of all trials.

    Returns:
        All trials, the best first.

    Raises:
        StartError: with everything that prevents one of the trials, before Ray starts.
        ClusterTooSmallError: if not one trial fits.
        SweepError: if the folder holds another sweep, Ray's dashboard does not answer though early stopping needs it, or no
            trial finished an epoch.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; the results so far are written and printed before.
        LockedError: if another process runs the sweep.
    """
    with hold_lock(plan.folder, "tuning", instead="choose another name for the sweep"):
        return _run_sweep(plan, print_table)


def _run_sweep(plan: Plan, print_table: Callable[[Table], None]) -> list[TrialState]:
    """See `run_sweep`."""
    open_sweep(plan.folder, plan.sweep, plan.base)
    if len(_ended(plan)) == plan.num_trials:
        logger.info(f"{plan.folder} is finished")
    else:
        _run_trials(plan)
    states = read_trials(plan.folder, runs=False)
    measured = [state for state in states if state.values(plan.sweep.objective.metric)]
    if measured:
        write_results(plan.folder, plan.sweep, plan.base, print_table=print_table)
    if len(_ended(plan)) < plan.num_trials:
        raise KeyboardInterrupt(_INTERRUPTED)
    if not measured:
        raise SweepError(f"no trial finished an epoch; error of the first trial: {states[0].error}")
    return rank_trials(states, plan.sweep)


def _ended(plan: Plan) -> list[TrialState]:
    return [state for state in read_trials(plan.folder) if state.status != "running"]


def _run_trials(plan: Plan) -> None:
    resources = plan.base.resources
    if small := find_small_validation(load_captions(plan.base)):
        logger.warning("; ".join(small))
    check_trials(plan.configs)
    with connect(num_cpus=local_cpus(plan.base), dashboard=needs_dashboard(plan)) as description:
        logger.info(description)
        gpus = gpus_per_worker(resources)
        share = WorkerResources(plan.cpus_per_worker, gpus, resources.node_labels)
        require_capacity(resources.max_workers, share, wait_s=resources.wait_s)
        if needs_dashboard(plan):
            _check_dashboard()
        shared = make_shared(plan.configs, count=plan.points is not None)
        # A resumed sweep would record that its own artifacts existed before.
        if not (plan.folder / "shared.json").exists():
            rows = [{**dataclasses.asdict(artifact), "path": str(artifact.path)} for artifact in shared]
            write_json(plan.folder / "shared.json", rows)
        at_once = trials_at_once(plan, nodes(resources.node_labels), gpus)
        logger.info(f"{plan.num_trials} trials, {at_once} at a time; the folder of the sweep is {plan.folder}")
        with _interruptible(), follow_sweep(plan.folder, plan.sweep, total=plan.num_trials):
            _fit(plan, at_once, gpus)
    # Workers of the last trial may have written checkpoints while they were being stopped.
    _keep_best(plan.folder, plan.sweep)


def needs_dashboard(plan: Plan) -> bool:
    """Whether trials run Ray Train, which finds the resources of stopped trials through Ray's dashboard."""
    return plan.base.resources.max_workers > 1


def _fit(plan: Plan, at_once: int, gpus: float) -> None:
    """Runs the trials of a sweep that have not ended; `gpus` are those of each worker."""
    # Tune prints the traceback of every failed trial, although its cause is recorded, and at the end it warns of missing
    # logs that it was configured not to write.
    for name in ("execution.tune_controller", "analysis.experiment_analysis"):
        logging.getLogger(f"ray.tune.{name}").setLevel(logging.CRITICAL)
    if plan.points is not None:
        # The trials resume from their own files, and Tune need not know of earlier ones.
        shutil.rmtree(plan.folder / _TUNE, ignore_errors=True)
        _tuner(plan, at_once, gpus, range(plan.num_trials)).fit()
        return
    # Optuna's state has the trials that were drawn. Those that num_samples adds are one more experiment of Tune.
    for first, end in pairwise((0, *plan.sample_counts)):
        numbers = range(first, end)
        if _left(plan, numbers):
            _tuner(plan, at_once, gpus, numbers).fit()
        if _left(plan, numbers):  # interrupted
            return


def _left(plan: Plan, numbers: Iterable[int]) -> list[int]:
    """Returns which of the trials have not ended."""
    ended = {state.number for state in _ended(plan)}
    return [number for number in numbers if number not in ended]


def _tuner(plan: Plan, at_once: int, gpus: float, numbers: range) -> tune.Tuner:
    """Builds the tuner of some trials of a sweep, or restores it if Optuna draws them and has begun to."""
    sweep, resources = plan.sweep, plan.base.resources
    job = SweepJob(sweep, plan.folder, plan.points, gpus * resources.max_workers)
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
    state = plan.folder / (_TUNE if numbers.start == 0 else f"{_TUNE}_{numbers.start:04d}")
    if any(state.glob("experiment_state*.json")):
        tuner = tune.Tuner.restore(str(state), trainable, resume_unfinished=True, resume_errored=False)
        renew_tuner(tuner, callbacks=callbacks, max_failures=sweep.max_failures, max_concurrent=limit)
        return tuner
    search = _optuna(plan, numbers) if plan.points is None else None
    return tune.Tuner(
        trainable,
        param_space=None if search else {"number": tune.grid_search(_left(plan, numbers))},
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


def _optuna(plan: Plan, numbers: range) -> OptunaSearch:
    """Builds the search that draws some trials, with the results of the trials before them."""
    sweep = plan.sweep
    search = OptunaSearch(
        space=Suggest(sweep.space, plan.base), metric="objective", mode=sweep.objective.mode, seed=sweep.seed
    )
    if numbers.start:
        before = max(count for count in (0, *plan.sample_counts) if count < numbers.start)
        search.restore_from_dir(str(plan.folder / (_TUNE if before == 0 else f"{_TUNE}_{before:04d}")))
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
    for state in _ended(plan):
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
        _keep_best(self._job.folder, self._job.sweep)


def _keep_best(folder: Path, sweep: SweepConfig) -> None:
    """Removes the checkpoints of ended trials, except of the `keep_best` best that finished."""
    ended = [state for state in rank_trials(read_trials(folder), sweep) if state.status != "running"]
    best = [state for state in ended if state.status == "finished"][: sweep.keep_best]
    for state in ended:
        if state not in best:
            drop_checkpoints(state.folder)


def _last_line(trial: Any) -> str:
    lines = str(trial.get_error() or "").strip().splitlines()
    return lines[-1] if lines else ""


def _check_dashboard() -> None:
    """Checks from a worker that Ray's dashboard answers, because Ray Train would wait for it without end.

    Raises:
        SweepError: if the dashboard does not answer, with the error that the worker got.
    """
    if problem := ray.get(ray.remote(num_cpus=0)(_ask_dashboard).remote()):
        raise SweepError(
            "Ray Train finds the resources of stopped trials with several workers through Ray's dashboard, which does not "
            f"answer ({problem}). Start Ray with --include-dashboard=true (if several Rays run on the machine, also with "
            "RAY_API_SERVER_ADDRESS=http://... of its dashboard in the environment), or set resources.workers to 1"
        )


def _ask_dashboard() -> str:
    """Returns the error of a request to the dashboard; an empty string if it answers."""
    try:
        list_placement_groups(limit=1, timeout=_DASHBOARD_S)
    except (RayStateApiException, OSError, RuntimeError) as error:  # requests' errors are OSErrors
        return f"{type(error).__name__}: {error}"
    return ""


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ends the sweep in order at SIGTERM, which `ray job stop` sends, as Tune does at SIGINT; restores both handlers.

    Tune leaves its handler of SIGINT behind, which swallows the next Ctrl-C of this process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    sigint_handler = signal.getsignal(signal.SIGINT)
    sigterm_handler = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, sigterm_handler)
        signal.signal(signal.SIGINT, sigint_handler)
