"""Plans a sweep: its trials, the resources of a trial, how many trials run at a time, what they share."""

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import torch

from waver.config import ExperimentConfig, SweepConfig, check_config, load_config
from waver.evaluation.confidence import find_small_validation
from waver.on_ray.cluster.capacity import (
    CPUS_PER_LOADER,
    WorkerResources,
    cluster_too_small,
    count_fitting_workers,
    local_cpus,
)
from waver.on_ray.cluster.connection import (
    cluster_address,
    cluster_size,
    connect,
    gpus_per_worker,
    nodes,
)
from waver.on_ray.tuning.shared import check_shared, find_shared
from waver.runs.inputs import load_captions
from waver.sweeps.extension import check_sweep, sample_counts
from waver.sweeps.folder import SweepError, sweep_folder
from waver.sweeps.space import Point, corner_points, list_points, point_configs, read_sweep
from waver.tools.errors import WaverError
from waver.tools.names import counted
from waver.tools.object_store import remote_of
from waver.training.build import build_student, freeze_student
from waver.training.cost import (
    MINUTE_H,
    CostError,
    ForwardFlops,
    TrainingCost,
    count_forward,
    format_hours,
    training_cost,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """The validated plan of a sweep, made before anything starts."""

    sweep: SweepConfig
    folder: Path
    base: ExperimentConfig
    points: tuple[Point, ...] | None
    """None if Optuna draws them while the sweep runs."""
    sample_counts: tuple[int, ...]
    """num_samples in the order in which it grew."""
    changes: dict[str, Any]
    """Dotted key -> value that all trials change in the base experiment."""
    configs: tuple[ExperimentConfig, ...]
    """Experiments of all points; if Optuna draws the points, of the corners of the search space."""

    @property
    def num_trials(self) -> int:
        """Number of trials of the whole sweep."""
        return self.sweep.num_samples if self.points is None else len(self.points)

    @property
    def cpus_per_worker(self) -> float:
        """CPUs of one worker and its loaders."""
        resources = self.base.resources
        return resources.cpus_per_worker + resources.loaders_per_worker * CPUS_PER_LOADER


def plan_sweep(path: Path, overrides: Mapping[str, Any] | None = None) -> Plan:
    """Reads a sweep and validates the experiment of every point that is known in advance; writes nothing.

    Args:
        path: YAML file of the sweep.
        overrides: dotted key of the sweep -> value, or of the experiment, for all trials; see `split_overrides`.

    Raises:
        ConfigError: with every mistake in the sweep or in the settings that it would try.
        SweepError: if the sweep needs Optuna, which is not installed; if a range would change what trials share; if the
            number of workers is elastic; or if storage.path is an object store.
    """
    sweep, for_all = read_sweep(path, overrides)
    if sweep.search == "optuna" and find_spec("optuna") is None:
        raise SweepError("search: optuna is not installed: pip install 'waver[tune]', or use search: random")
    base = load_config(sweep.base, for_all)
    if base.resources.is_elastic:
        raise SweepError(
            "resources.workers is a range, but the trials of a sweep need a fixed number of workers: set it, e.g. with "
            "--set resources.workers=1"
        )
    if remote_of(base.storage.folder):
        raise SweepError(
            f"storage.path = {base.storage.path}: the trials of a sweep share a folder, which must be on a file system that "
            "every node mounts: set such a path (`set` in the sweep, or --set storage.path=...)"
        )
    folder = sweep_folder(base.storage.folder, sweep.name)
    counts = sample_counts(folder, sweep)
    known = None if sweep.search == "optuna" else tuple(list_points(sweep, base, counts))
    configs = point_configs(sweep, base, for_all, list(corner_points(sweep, base) if known is None else known))
    if known is None:
        _check_ranges(sweep, for_all)
    return Plan(sweep, folder, base, known, tuple(counts), for_all, configs)


def _check_ranges(sweep: SweepConfig, for_all: dict[str, Any]) -> None:
    """Raises SweepError if clip store, dictionary or knowledge, which are made before the trials, depend on a range."""
    for key, parameter in sweep.space.items():
        if parameter.kind == "choice":
            continue
        ends = [check_config(sweep.base, {**for_all, key: value})[0] for value in parameter.values]
        places = {(config.clip_store, config.dictionary, config.knowledge_store) for config in ends if config}
        if len(places) > 1:
            raise SweepError(
                f"space.{key}: each value needs its own clip store or knowledge, which is made before the first trial: "
                f"with search: optuna, use choice instead of {parameter.kind}"
            )


def trials_at_once(plan: Plan, cluster: Sequence[Mapping[str, float]], gpus: float) -> int:
    """Returns how many trials run at the same time, within the limit that the sweep sets; 0 if not one fits.

    Args:
        plan: plan of the sweep.
        cluster: resources of each node.
        gpus: GPUs of each worker.
    """
    fit = count_fitting_workers(cluster, plan.cpus_per_worker, gpus) // plan.base.resources.max_workers
    return min(fit, plan.num_trials, plan.sweep.max_concurrent or fit)


def local_nodes(plan: Plan) -> list[dict[str, float]]:
    """Returns the resources of this machine, as a Ray started on it would count them."""
    return [{"CPU": float(local_cpus(plan.base)), "GPU": float(torch.cuda.device_count())}]


def describe_plan(plan: Plan) -> None:
    """Logs the plan of a sweep: trials, resources, trials at a time, memory, and which artifacts exist. Starts no trial.

    Raises:
        SweepError: after the plan, if the sweep cannot run here, with everything that is missing.
    """
    resources, at_once, missing = plan.base.resources, 0, []
    gpus = resources.gpus_per_worker or 0.0
    with _added_to(missing):
        cluster, gpus, size = _find_cluster(plan)
        at_once = trials_at_once(plan, cluster, gpus)
        if at_once == 0:
            capacity = count_fitting_workers(cluster, plan.cpus_per_worker, gpus)
            raise cluster_too_small(resources.max_workers, WorkerResources(plan.cpus_per_worker, gpus), capacity, size)
    with _added_to(missing):
        check_sweep(plan.folder, plan.sweep, plan.base)
    _describe_trials(plan)
    logger.info(
        f"a trial takes {counted(resources.max_workers, 'worker')} with {plan.cpus_per_worker:g} CPU and {gpus:g} GPU each; "
        + (f"{at_once} at a time" if at_once else "not one fits here")
    )
    with _added_to(missing):
        logger.info(memory_estimate(plan, max(at_once, 1)))
    with _added_to(missing):
        _describe_cost(plan)
    with _added_to(missing):
        _describe_shared(plan)
    if missing:
        raise SweepError("\n".join(["the sweep cannot run here:", *(f"  {sentence}" for sentence in missing)]))


@contextmanager
def _added_to(missing: list[str]) -> Generator[None, None, None]:
    """Adds the message of an error that the body raises to those of everything that is missing."""
    try:
        yield
    except WaverError as error:
        missing.append(str(error))


def _find_cluster(plan: Plan) -> tuple[list[dict[str, float]], float, str]:
    """Returns the resources of each node, the GPUs of a worker, and the size in words: of the cluster, or this machine.

    Raises:
        ClusterUnreachableError: if the cluster of RAY_ADDRESS does not answer.
    """
    resources = plan.base.resources
    if cluster_address() or ray.is_initialized():
        with connect() as description:
            logger.info(description)
            return nodes(resources.node_labels), gpus_per_worker(resources), cluster_size(resources.node_labels)
    cluster = local_nodes(plan)
    gpus = float(cluster[0]["GPU"] > 0) if resources.gpus_per_worker is None else resources.gpus_per_worker
    return cluster, gpus, f"{cluster[0]['CPU']:g} CPUs and {cluster[0]['GPU']:g} GPUs"


def _describe_trials(plan: Plan) -> None:
    sweep = plan.sweep
    trials = f"{plan.num_trials} trials"
    if plan.points is None:
        trials += " whose points Optuna draws during the sweep"
    seeds = f", {sweep.repeats} seeds each" if sweep.repeats > 1 else ""
    epochs = max(config.train.epochs for config in plan.configs) * sweep.repeats
    logger.info(
        f"{sweep.name}: {trials}{seeds}, {epochs} epochs at most, {sweep.objective.metric} on {sweep.objective.split}"
    )
    for number, point in enumerate(plan.points or ()):
        logger.info(f"  {number:4d}  {', '.join(f'{key}={value}' for key, value in point.items())}")


def _describe_cost(plan: Plan) -> None:
    captions = load_captions(plan.base)
    try:
        logger.info(cost_estimate(plan, captions))
    except CostError as error:
        logger.info(str(error))
    if small := find_small_validation(captions):
        logger.warning("; ".join(small))


def _describe_shared(plan: Plan) -> None:
    for artifact in find_shared(plan.configs, count=plan.points is not None):
        state = "exists and will be reused" if artifact.there else "will be made once"
        users = f" ({artifact.trials} trials)" if artifact.trials else ""
        logger.info(f"{artifact.what}: {state}: {artifact.path}{users}")
    check_shared(plan.configs)


def memory_estimate(plan: Plan, at_once: int) -> str:
    """Estimates the memory of a trial without running it.

    Returns:
        A sentence for the user: GiB per trial, and for `at_once` trials together.
    """
    bytes_of: dict[str, int] = {}
    for config in plan.configs:
        with torch.device("meta"):
            student = build_student(config)
            freeze_student(student, config)
            counts = [(p.numel(), p.requires_grad) for p in student.parameters()]
        workers = config.resources.max_workers
        pairs = -(-config.train.global_batch_size // workers)
        frames = pairs * config.video.max_frames * 3 * config.preprocessing.size**2
        # Weights, and of those that are trained gradients and the two moments of AdamW; this batch and one read ahead.
        values = sum(4 * number if is_trained else number for number, is_trained in counts)
        bytes_of[config.digest()] = workers * (4 * values + 2 * frames)
    most = max(bytes_of.values()) / 2**30
    return (
        f"estimated memory: {most:.2f} GiB per trial for weights, gradients, optimizer and frames, {at_once * most:.2f} GiB "
        "at a time; activations and each process's libraries (about 1 GiB) come on top"
    )


def cost_estimate(plan: Plan, captions: pa.Table) -> str:
    """Estimates the floating-point operations of the trials without running them.

    Returns:
        A sentence for the user: those of one run, GPU-hours of the sweep if no trial is stopped, and with its scheduler.

    Raises:
        CostError: if they cannot be estimated.
    """
    sweep = plan.sweep
    forward: dict[str, ForwardFlops] = {}
    costs: list[TrainingCost] = []
    for config in plan.configs:
        model = config.model_dump_json(include={"model", "video", "text", "similarity", "knowledge"})
        key = f"{config.uses_fusion} {model}"
        if key not in forward:
            forward[key] = count_forward(config)
        costs.append(training_cost(config, captions, forward[key]))
    most = max(costs, key=lambda cost: cost.flops)
    hours = [cost.gpu_hours for cost in costs] if plan.points is not None else [most.gpu_hours] * plan.num_trials
    total = sweep.repeats * sum(hours)
    epochs = max(config.train.epochs for config in plan.configs) * sweep.repeats
    reduction = float(sweep.scheduler.reduction_factor)
    share = asha_share(epochs, sweep.scheduler.grace_epochs, reduction) if sweep.scheduler.kind == "asha" else 1.0
    stopped = (
        f" if none is stopped, about {format_hours(share * total)} if asha keeps 1 of {reduction:g} trials at each step"
        if share < 1 and share * total > MINUTE_H
        else ""
    )
    return (
        f"estimated computation of a run: at most {most.describe()}; of all {plan.num_trials * sweep.repeats} runs: "
        f"{format_hours(total)}{stopped}"
    )


def asha_share(num_epochs: int, grace_epochs: int, reduction_factor: float) -> float:
    """Returns the share of all epochs that are trained if ASHA stops as many trials as it may, at each of its steps."""
    trained, remaining, last, step = 0.0, 1.0, 0.0, float(grace_epochs)
    while step < num_epochs:
        trained += remaining * (step - last)
        remaining, last, step = remaining / reduction_factor, step, step * reduction_factor
    return (trained + remaining * (num_epochs - last)) / num_epochs
