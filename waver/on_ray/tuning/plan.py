"""What a sweep will do: its trials, how many fit at a time, what they need and share. Nothing is started for it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray
import torch

from waver.config import ExperimentConfig, SweepConfig, check_config, load_config, load_sweep
from waver.on_ray.cluster.capacity import CPUS_PER_LOADER, WorkerResources, local_cpus, slots, too_small
from waver.on_ray.cluster.connection import cluster_address, cluster_size, connect, gpus_per_worker, nodes
from waver.on_ray.tuning.shared import SharedArtifact, find_shared
from waver.sweeps.folder import SweepError, sweep_folder
from waver.sweeps.space import Point, base_overrides, corner_points, list_points, point_configs
from waver.tools.object_store import remote_of
from waver.training.build import build_student

logger = logging.getLogger(__name__)


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
        SweepError: where Optuna is asked for what it cannot do here, or not installed.
    """
    sweep = load_sweep(path)
    if sweep.search == "optuna" and find_spec("optuna") is None:
        raise SweepError("search: optuna is an extra: pip install 'waver[tune]', or take search: random")
    for_all = base_overrides(sweep, overrides)
    base = load_config(sweep.base, for_all)
    if base.resources.is_elastic:
        raise SweepError(
            "resources.workers is a range: how many trials fit at a time is only known where each has a fixed number of "
            "workers; set it, e.g. with --set resources.workers=1"
        )
    if remote_of(base.storage.folder):
        raise SweepError(
            f"storage.path = {base.storage.path}: the trials of a sweep meet in a folder of a disk that every node sees; "
            "write the path of one (`set` in the sweep, or --set storage.path=...)"
        )
    known = None if sweep.search == "optuna" else tuple(list_points(sweep, base))
    configs = point_configs(sweep, base, for_all, list(corner_points(sweep, base) if known is None else known))
    if known is None:
        _check_ranges(sweep, for_all)
    return Plan(sweep, sweep_folder(base.storage.folder, sweep.name), base, known, configs)


def _check_ranges(sweep: SweepConfig, for_all: dict[str, Any]) -> None:
    """What trials share is made before they start, so it must not depend on what Optuna draws from a range."""
    for key, parameter in sweep.space.items():
        if parameter.kind == "choice":
            continue
        ends = [check_config(sweep.base, {**for_all, key: value})[0] for value in parameter.values]
        places = {(config.clip_store, config.dictionary, config.knowledge_store) for config in ends if config}
        if len(places) > 1:
            raise SweepError(
                f"space.{key}: other clips or phrases belong to each of its values, and they are made before the first "
                f"trial: with search: optuna write a choice in place of {parameter.kind}"
            )


def trials_at_once(plan: Plan, cluster: Sequence[Mapping[str, float]], gpus: float) -> int:
    """Trials that fit into a cluster at the same time, within the sweep's own limit; 0 where not one fits.

    Args:
        plan: of the sweep.
        cluster: resources of each node.
        gpus: of each worker.
    """
    fit = slots(cluster, plan.cpus_per_worker, gpus) // plan.base.resources.max_workers
    return min(fit, plan.num_trials, plan.sweep.max_concurrent or fit)


def local_nodes(plan: Plan) -> list[dict[str, float]]:
    """Resources of this machine, as a Ray that is started here would count them."""
    return [{"CPU": float(local_cpus(plan.base)), "GPU": float(torch.cuda.device_count())}]


def describe_plan(plan: Plan) -> None:
    """What a sweep would do: trials, resources, how many at a time, memory, and what is there already. Starts no trial.

    Raises:
        ClusterTooSmallError: where not one trial fits.
    """
    resources = plan.base.resources
    if cluster_address() or ray.is_initialized():
        with connect() as where:
            logger.info(where)
            cluster, gpus = nodes(resources.node_labels), gpus_per_worker(resources)
            size = cluster_size(resources.node_labels)
    else:
        cluster = local_nodes(plan)
        asked = resources.gpus_per_worker
        gpus = float(cluster[0]["GPU"] > 0) if asked is None else asked
        size = f"{cluster[0]['CPU']:g} CPUs and {cluster[0]['GPU']:g} GPUs"
    at_once = trials_at_once(plan, cluster, gpus)
    if at_once == 0:
        room = slots(cluster, plan.cpus_per_worker, gpus)
        raise too_small(resources.max_workers, WorkerResources(plan.cpus_per_worker, gpus), room, 0.0, size)
    sweep = plan.sweep
    drawn = (
        f"{plan.num_trials} trials that Optuna draws as it goes" if plan.points is None else f"{plan.num_trials} trials"
    )
    seeds = f", {sweep.repeats} seeds each" if sweep.repeats > 1 else ""
    epochs = max(config.train.epochs for config in plan.configs) * sweep.repeats
    logger.info(
        f"{sweep.name}: {drawn}{seeds}, {epochs} epochs at most, {sweep.objective.metric} on {sweep.objective.split}"
    )
    for number, point in enumerate(plan.points or ()):
        logger.info(f"  {number:4d}  {', '.join(f'{key}={value}' for key, value in point.items())}")
    logger.info(
        f"a trial takes {resources.max_workers} workers with {plan.cpus_per_worker:g} CPU and {gpus:g} GPU each; "
        f"{at_once} at a time"
    )
    logger.info(memory_estimate(plan, at_once))
    for one in find_shared(plan.configs, count=plan.points is not None):
        logger.info(
            f"{one.what}: {'is there, and will be reused' if one.there else 'will be made once'}: {one.path}{_of(one)}"
        )


def memory_estimate(plan: Plan, at_once: int) -> str:
    """What is known of the memory of a trial without running it, in a sentence."""
    bytes_of: dict[str, int] = {}
    for config in plan.configs:
        with torch.device("meta"):
            parameters = sum(p.numel() for p in build_student(config).parameters())
        workers, video = config.resources.max_workers, config.video
        pairs = -(-config.train.global_batch_size // workers)
        frames = pairs * video.max_frames * 3 * video.size**2
        # Weights, gradients and the two moments of AdamW; a batch in use and one that was read ahead.
        bytes_of[config.digest()] = workers * (4 * 4 * parameters + 2 * frames)
    most = max(bytes_of.values()) / 2**30
    return (
        f"estimated memory: {most:.2f} GiB a trial for weights, gradients, optimizer and frames, {at_once * most:.2f} GiB "
        "at a time; activations and each process's libraries (about 1 GiB) come on top"
    )


def _of(one: SharedArtifact) -> str:
    return f" ({one.trials} trials)" if one.trials else ""
