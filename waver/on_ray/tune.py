"""`waver tune`: a sweep over the keys of an experiment, with Ray Tune."""

import dataclasses
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune import PlacementGroupFactory
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from ray.util.state import list_placement_groups
from ray.util.state.exception import RayStateApiException

from waver.config import ExperimentConfig, SweepConfig, load_config, load_sweep
from waver.files import write_json
from waver.on_ray.cluster import connect, gpus_per_worker, nodes, require, slots, too_small
from waver.on_ray.experiment import local_cpus
from waver.on_ray.shared import Shared, prepare, survey
from waver.on_ray.stream import CPUS_PER_LOADER
from waver.on_ray.trial import SweepJob, run_trial
from waver.on_ray.watch import watch
from waver.sweep.folder import (
    SweepError,
    TrialState,
    begin_trial,
    drop_checkpoints,
    open_sweep,
    read_json,
    read_trial,
    read_trials,
    sweep_folder,
    trial_folder,
)
from waver.sweep.results import ranked, write_results
from waver.sweep.space import Point, base_overrides, corners, point_configs, points
from waver.sweep.suggest import Suggest

Say = Callable[[str], None]
_TUNE = "tune"
_DASHBOARD_S = 20
_INTERRUPTED = "the sweep was stopped; run the same command again to go on with it"


@dataclass(frozen=True)
class Plan:
    """What a sweep will do, known before anything starts."""

    sweep: SweepConfig
    folder: Path
    base: ExperimentConfig
    points: tuple[Point, ...] | None
    """None where Optuna draws them."""
    configs: tuple[ExperimentConfig, ...]
    """Of all points; of the corners of the space, where Optuna draws them."""

    @property
    def num_trials(self) -> int:
        """Of the whole sweep."""
        return self.sweep.num_samples if self.points is None else len(self.points)

    @property
    def cpus_per_worker(self) -> float:
        """What a worker takes, with those who read for it."""
        resources = self.base.resources
        return resources.cpus_per_worker + resources.loaders_per_worker * CPUS_PER_LOADER


def plan_sweep(path: Path, overrides: Mapping[str, Any] | None = None) -> Plan:
    """Reads a sweep and validates the experiment of every point that can be known; writes nothing.

    Args:
        path: the YAML file.
        overrides: dotted key -> value of the experiment, for all trials.

    Raises:
        ConfigError: with every mistake, in the sweep or in what it would try.
    """
    sweep = load_sweep(path)
    for_all = base_overrides(sweep, overrides)
    base = load_config(sweep.base, for_all)
    known = None if sweep.search == "optuna" else tuple(points(sweep, base))
    configs = point_configs(sweep, base, for_all, list(corners(sweep, base) if known is None else known))
    return Plan(sweep, sweep_folder(base.storage.path, sweep.name).absolute(), base, known, configs)


def trials_at_once(plan: Plan, cluster: Sequence[Mapping[str, float]], gpus: float) -> int:
    """Trials that fit into a cluster at the same time, within the sweep's own limit; 0 where not one fits.

    Args:
        plan: of the sweep.
        cluster: resources of each node.
        gpus: of each worker.
    """
    fit = slots(cluster, plan.cpus_per_worker, gpus) // plan.base.resources.workers
    return min(fit, plan.num_trials, plan.sweep.max_concurrent or fit)


def run_sweep(plan: Plan, *, say: Say, show: Callable[[object], None]) -> list[TrialState]:
    """Runs a sweep, or goes on with it where it was; writes its results, whatever ended it.

    Args:
        plan: of the sweep.
        say: is told what is going on.
        show: is given the table.

    Returns:
        All trials, the best first.

    Raises:
        ClusterTooSmall: where not one trial fits.
        SweepError: where the folder holds another sweep, the cluster lacks what early stopping needs, or no trial gave a
            figure.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with all that is known so far written and shown.
    """
    open_sweep(plan.folder, plan.sweep, plan.base.to_yaml())
    if len(_ended(plan)) == plan.num_trials:
        say(f"{plan.folder} is finished")
    else:
        _run_trials(plan, say)
    states = read_trials(plan.folder)
    measured = [state for state in states if state.values(plan.sweep.objective.metric)]
    if measured:
        write_results(plan.folder, plan.sweep, plan.base, say=say, show=show)
    if len(_ended(plan)) < plan.num_trials:
        raise KeyboardInterrupt(_INTERRUPTED)
    if not measured:
        raise SweepError(f"no trial came to the end of an epoch; the first says: {states[0].error}")
    return ranked(states, plan.sweep)


def _ended(plan: Plan) -> list[TrialState]:
    return [state for state in read_trials(plan.folder) if state.status != "running"]


def _run_trials(plan: Plan, say: Say) -> None:
    resources = plan.base.resources
    with connect(num_cpus=local_cpus(plan.base), dashboard=needs_dashboard(plan)) as where:
        say(where)
        gpus = gpus_per_worker(resources)
        require(resources.workers, cpus_per_worker=plan.cpus_per_worker, gpus_per_worker=gpus, wait_s=resources.wait_s)
        if needs_dashboard(plan):
            _check_dashboard()
        shared = prepare(plan.configs, say=say, count=plan.points is not None)
        if not (plan.folder / "shared.json").exists():  # a sweep that goes on finds what it made itself
            rows = [{**dataclasses.asdict(one), "path": str(one.path)} for one in shared]
            write_json(plan.folder / "shared.json", rows)
        at_once = trials_at_once(plan, nodes(), gpus)
        say(f"{plan.num_trials} trials, {at_once} at a time; everything goes to {plan.folder}")
        with _terminated_like_interrupted(), watch(plan.folder, plan.sweep, total=plan.num_trials, say=say):
            _tuner(plan, at_once, gpus).fit()


def needs_dashboard(plan: Plan) -> bool:
    """Whether Ray Train runs in trials that may be stopped: what these leave behind is found through the dashboard."""
    return plan.base.resources.workers > 1


def local_nodes(plan: Plan) -> list[dict[str, float]]:
    """Resources of this machine, as a Ray that is started here would count them."""
    return [{"CPU": float(local_cpus(plan.base)), "GPU": float(torch.cuda.device_count())}]


def describe_plan(plan: Plan, *, say: Say) -> None:
    """What a sweep would do: trials, resources, how many at a time, memory, and what is there already. Starts no trial.

    Raises:
        ClusterTooSmall: where not one trial fits.
    """
    resources = plan.base.resources
    if "RAY_ADDRESS" in os.environ or ray.is_initialized():
        with connect() as where:
            say(where)
            cluster, gpus = nodes(), gpus_per_worker(resources)
    else:
        cluster = local_nodes(plan)
        asked = resources.gpus_per_worker
        gpus = float(cluster[0]["GPU"] > 0) if asked is None else asked
    at_once = trials_at_once(plan, cluster, gpus)
    if at_once == 0:
        size = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in cluster)
        room = slots(cluster, plan.cpus_per_worker, gpus)
        raise too_small(resources.workers, plan.cpus_per_worker, gpus, room, 0.0, size)
    sweep = plan.sweep
    drawn = (
        f"{plan.num_trials} trials that Optuna draws as it goes" if plan.points is None else f"{plan.num_trials} trials"
    )
    seeds = f", {sweep.repeats} seeds each" if sweep.repeats > 1 else ""
    epochs = max(config.train.epochs for config in plan.configs) * sweep.repeats
    say(f"{sweep.name}: {drawn}{seeds}, {epochs} epochs at most, {sweep.objective.metric} on {sweep.objective.split}")
    for number, point in enumerate(plan.points or ()):
        say(f"  {number:4d}  {', '.join(f'{key}={value}' for key, value in point.items())}")
    say(
        f"a trial takes {resources.workers} workers with {plan.cpus_per_worker:g} CPU and {gpus:g} GPU each; "
        f"{at_once} at a time"
    )
    say(memory_estimate(plan, at_once))
    for one in survey(plan.configs, count=plan.points is not None):
        say(f"{one.what}: {'is there, and will be reused' if one.there else 'will be made once'}: {one.path}{_of(one)}")


def memory_estimate(plan: Plan, at_once: int) -> str:
    """What is known of the memory of a trial without running it, in a sentence."""
    from waver.engine import build_student

    bytes_of: dict[str, int] = {}
    for config in plan.configs:
        with torch.device("meta"):
            parameters = sum(p.numel() for p in build_student(config).parameters())
        workers, video = config.resources.workers, config.video
        pairs = -(-config.train.global_batch_size // workers)
        frames = pairs * video.max_frames * 3 * video.size**2
        # Weights, gradients and the two moments of AdamW; a batch in use and one that was read ahead.
        bytes_of[config.digest()] = workers * (4 * 4 * parameters + 2 * frames)
    most = max(bytes_of.values()) / 2**30
    return (
        f"estimated memory: {most:.2f} GiB a trial for weights, gradients, optimizer and frames, {at_once * most:.2f} GiB "
        "at a time; activations and each process's libraries (about 1 GiB) come on top"
    )


def _of(one: Shared) -> str:
    return f" ({one.trials} trials)" if one.trials else ""


def _tuner(plan: Plan, at_once: int, gpus: float) -> tune.Tuner:
    # At the end Tune looks for logs that it was told not to write.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    sweep, resources = plan.sweep, plan.base.resources
    job = SweepJob(sweep, plan.folder, plan.points, gpus * resources.workers)
    alone = resources.workers == 1
    if alone:
        bundle = {"CPU": resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    else:  # the process of the trial only waits for Ray Train, which asks for the workers; it must not take their place
        bundle = {"CPU": 0, "node:__internal_head__": 0.001}
    trainable = tune.with_resources(tune.with_parameters(run_trial, job=job), PlacementGroupFactory([bundle]))
    state = plan.folder / _TUNE
    if any(state.glob("experiment_state*.json")):
        return tune.Tuner.restore(str(state), trainable, resume_unfinished=True, resume_errored=False)
    param_space, search = None, None
    if plan.points is None:
        search = OptunaSearch(
            space=Suggest(sweep.space, plan.base), metric="objective", mode=sweep.objective.mode, seed=sweep.seed
        )
    else:
        param_space = {"number": tune.grid_search(list(range(len(plan.points))))}
    scheduler = None
    num_epochs = max(config.train.epochs for config in plan.configs) * sweep.repeats
    if sweep.scheduler.kind == "asha" and sweep.scheduler.grace_epochs < num_epochs:
        scheduler = ASHAScheduler(
            time_attr="epoch",
            max_t=num_epochs,
            grace_period=sweep.scheduler.grace_epochs,
            reduction_factor=sweep.scheduler.reduction_factor,
        )
    return tune.Tuner(
        trainable,
        param_space=param_space,
        tune_config=tune.TuneConfig(
            metric="objective",
            mode=sweep.objective.mode,
            search_alg=search,
            scheduler=scheduler,
            num_samples=sweep.num_samples if search else 1,
            # Where the trial's own process does the work Tune sees by itself what fits, also when the cluster grows. Trials
            # whose workers Ray Train asks for must be counted by us.
            max_concurrent_trials=sweep.max_concurrent if alone and not resources.loaders_per_worker else at_once,
            reuse_actors=alone,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=_TUNE,
            storage_path=str(plan.folder),
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            callbacks=[_Outcomes(job)],
            verbose=0,
        ),
    )


def _trial_name(trial: Any) -> str:
    return f"trial_{trial.config['number']:04d}"


class _Outcomes(tune.Callback):
    """Writes how trials ended, and removes the checkpoints of those that are not among the best."""

    def __init__(self, job: SweepJob):
        self._job = job

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        runs = read_trial(self._folder(trial)).runs
        done = sum(run.finished for run in runs) == self._job.sweep.repeats
        self._end(trial, "finished" if done else "stopped", "")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        folder = self._folder(trial)
        said = read_json(folder / "failure.json").get("error")
        self._end(trial, "failed", said or _last_line(trial) or "its process was lost, without a word")

    def _folder(self, trial: Any) -> Path:
        number = trial.config["number"]
        folder = trial_folder(self._job.folder, number)
        if not (folder / "trial.json").exists():  # its process ended before it could begin
            begin_trial(self._job.folder, number, self._job.point(trial.config))
        return folder

    def _end(self, trial: Any, status: str, error: str) -> None:
        write_json(self._folder(trial) / "outcome.json", {"status": status, "error": error})
        ended = [state for state in read_trials(self._job.folder) if state.status != "running"]
        kept = [state for state in ranked(ended, self._job.sweep) if state.status == "finished"]
        best = {state.number for state in kept[: self._job.sweep.keep_best]}
        for state in ended:
            if state.number not in best:
                drop_checkpoints(state.folder)


def _last_line(trial: Any) -> str:
    lines = str(trial.get_error() or "").strip().splitlines()
    return lines[-1] if lines else ""


def _check_dashboard() -> None:
    """Asks where Ray Train will ask, in a worker: it hangs where it gets no answer.

    Raises:
        SweepError: with what the worker was told.
    """
    if problem := ray.get(ray.remote(num_cpus=0)(_ask_dashboard).remote()):
        raise SweepError(
            "what stopped trials of several workers leave behind is found through Ray's dashboard, which does not answer "
            f"({problem}). Start Ray with --include-dashboard=true, where several Rays run on the machine with "
            "RAY_API_SERVER_ADDRESS=http://... of its dashboard in the environment; or set resources.workers to 1"
        )


def _ask_dashboard() -> str:
    """What is wrong with the dashboard; nothing if it answers."""
    try:
        list_placement_groups(limit=1, timeout=_DASHBOARD_S)
    except (RayStateApiException, OSError, RuntimeError) as error:  # requests' errors are OSErrors
        return f"{type(error).__name__}: {error}"
    return ""


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM, which `ray job stop` sends, ends a sweep as Ctrl-C does: Tune's handler lets it end in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
