"""Runs a sweep over the keys of an experiment with Ray Tune (`waver tune`)."""

import dataclasses
import logging
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import ray
from ray.util.state import list_placement_groups
from ray.util.state.exception import RayStateApiException
from rich.table import Table

from waver.evaluation.confidence import find_small_validation
from waver.on_ray.cluster.capacity import WorkerResources, local_cpus, require_capacity
from waver.on_ray.cluster.connection import connect, gpus_per_worker, nodes
from waver.on_ray.stages.start import check_trials
from waver.on_ray.tuning.plan import Plan, plan_fine_tuning, trials_at_once
from waver.on_ray.tuning.shared import make_shared
from waver.on_ray.tuning.tuner import build_tuner, ended_trials, state_folder, trials_left
from waver.runs.inputs import load_captions
from waver.sweeps.extension import open_sweep
from waver.sweeps.folder import SweepError, TrialState, read_trials
from waver.sweeps.progress import follow_sweep
from waver.sweeps.ranking import rank_trials
from waver.sweeps.results import write_results
from waver.sweeps.then import choose_trials, keep_checkpoints, read_fine_tuned
from waver.tools.files import write_json
from waver.tools.lock import hold_lock
from waver.tools.names import counted

logger = logging.getLogger(__name__)

_DASHBOARD_S = 20
_INTERRUPTED = "the sweep was stopped; run the same command again to resume it"


def run_sweep(plan: Plan, *, print_table: Callable[[Table], None]) -> list[TrialState]:
    """Runs or resumes a sweep and the fine-tunings of its best trials; writes its results even if it is interrupted.

    Args:
        plan: plan of the sweep.
        print_table: called with the table of all trials, and with that of the fine-tuned ones, if there are any.

    Returns:
        All trials, the best first; before the searched ones those that were fine-tuned, if there are any.

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
    if _is_finished(plan):
        logger.info(f"{plan.folder} is finished")
    else:
        _run_trials(plan)
    states = read_trials(plan.folder, runs=False)
    measured = [state for state in states if state.values(plan.sweep.objective.metric)]
    if measured:
        write_results(plan.folder, plan.sweep, plan.base, print_table=print_table)
    if not _is_finished(plan):
        raise KeyboardInterrupt(_INTERRUPTED)
    if not measured:
        raise SweepError(f"no trial finished an epoch; error of the first trial: {states[0].error}")
    fine_tuned = read_fine_tuned(plan.folder, plan.sweep, runs=False)
    return [*rank_trials(fine_tuned, plan.sweep), *rank_trials(states, plan.sweep)]


def _is_finished(plan: Plan) -> bool:
    """Returns whether all trials have ended, and the fine-tunings of the best of them."""
    if len(ended_trials(plan)) < plan.num_trials:
        return False
    then = _fine_tuning(plan)
    return then is None or not trials_left(then, then.points or ())


def _fine_tuning(plan: Plan) -> Plan | None:
    """Returns the plan of the fine-tunings of a search that has ended; None if there is nothing to fine-tune."""
    chosen = choose_trials(read_trials(plan.folder), plan.sweep)
    return plan_fine_tuning(plan, chosen) if chosen else None


def _run_trials(plan: Plan) -> None:
    """Runs the trials that have not ended, and then the fine-tunings of the best."""
    if small := find_small_validation(load_captions(plan.base)):
        logger.warning("; ".join(small))
    stages = [plan, plan_fine_tuning(plan)] if plan.sweep.then else [plan]
    check_trials([*plan.configs, *plan.fine_tuned])
    dashboard = any(needs_dashboard(stage) for stage in stages)
    with connect(num_cpus=max(local_cpus(stage.base) for stage in stages), dashboard=dashboard) as description:
        logger.info(description)
        for stage in stages:  # what fine-tuning lacks must not first show after the search
            _require_capacity(stage)
        if dashboard:
            _check_dashboard()
        shared = make_shared(plan.configs, fine_tuned=plan.fine_tuned, count=plan.points is not None)
        # A resumed sweep would record that its own artifacts existed before.
        if not (plan.folder / "shared.json").exists():
            rows = [{**dataclasses.asdict(artifact), "path": str(artifact.path)} for artifact in shared]
            write_json(plan.folder / "shared.json", rows)
        if len(ended_trials(plan)) < plan.num_trials:
            _run_stage(plan, f"{counted(plan.num_trials, 'trial')}")
        if len(ended_trials(plan)) == plan.num_trials and (then := _fine_tuning(plan)):
            numbers = ", ".join(map(str, then.points or ()))
            _run_stage(then, f"fine-tuning {counted(then.num_trials, 'trial')}, the best of the search ({numbers})")
    # Workers of the last trial may have written checkpoints while they were being stopped.
    keep_checkpoints(plan.folder, plan.sweep)


def _require_capacity(plan: Plan) -> None:
    """Waits until one trial fits, see `require_capacity`."""
    resources = plan.base.resources
    share = WorkerResources(plan.cpus_per_worker, gpus_per_worker(resources), resources.node_labels)
    require_capacity(resources.max_workers, share, wait_s=resources.wait_s)


def needs_dashboard(plan: Plan) -> bool:
    """Whether trials run Ray Train, which finds the resources of stopped trials through Ray's dashboard."""
    return plan.base.resources.max_workers > 1


def _run_stage(plan: Plan, what: str) -> None:
    """Runs the trials of the search, or the fine-tunings, that have not ended.

    Args:
        plan: plan of the search, or of the fine-tunings.
        what: the trials, in words.
    """
    resources = plan.base.resources
    gpus = gpus_per_worker(resources)
    at_once = trials_at_once(plan, nodes(resources.node_labels), gpus)
    logger.info(f"{what}, {at_once} at a time; the folder of the sweep is {plan.searched or plan.folder}")
    # Tune prints the traceback of every failed trial, although its cause is recorded, and at the end it warns of missing
    # logs that it was configured not to write.
    for name in ("execution.tune_controller", "analysis.experiment_analysis"):
        logging.getLogger(f"ray.tune.{name}").setLevel(logging.CRITICAL)
    of_what = "fine-tuning" if plan.searched else "trial"
    with _interruptible(), follow_sweep(plan.folder, plan.sweep, total=plan.num_trials, what=of_what):
        _fit(plan, at_once, gpus)


def _fit(plan: Plan, at_once: int, gpus: float) -> None:
    """Runs the trials of a plan that have not ended; `gpus` are those of each worker."""
    if plan.points is not None:
        # The trials resume from their own files, and Tune need not know of earlier ones.
        shutil.rmtree(state_folder(plan, ()), ignore_errors=True)
        build_tuner(plan, at_once, gpus, list(plan.points)).fit()
        return
    # Optuna's state has the trials that were drawn. Those that num_samples adds are one more experiment of Tune.
    for first, end in pairwise((0, *plan.sample_counts)):
        numbers = range(first, end)
        if trials_left(plan, numbers):
            build_tuner(plan, at_once, gpus, numbers).fit()
        if trials_left(plan, numbers):  # interrupted
            return


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
