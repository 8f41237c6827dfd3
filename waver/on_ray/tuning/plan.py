"""Plans a sweep: its trials and their fine-tunings, the resources of a trial, and how many trials run at a time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from waver.config import ExperimentConfig, SweepConfig, check_config, load_config
from waver.config.sweep import SchedulerConfig
from waver.on_ray.cluster.capacity import CPUS_PER_LOADER, count_fitting_workers, local_cpus
from waver.sweeps.extension import sample_counts
from waver.sweeps.folder import SweepError, TrialState, sweep_folder
from waver.sweeps.space import (
    Point,
    corner_points,
    fine_tuned_configs,
    fine_tuned_point,
    list_points,
    point_configs,
    read_sweep,
)
from waver.sweeps.then import then_folder
from waver.tools.object_store import remote_of


@dataclass(frozen=True)
class Plan:
    """The validated plan of a sweep, made before anything starts."""

    sweep: SweepConfig
    folder: Path
    base: ExperimentConfig
    points: Mapping[int, Point] | None
    """Number of a trial -> point; None if Optuna draws them while the sweep runs."""
    sample_counts: tuple[int, ...]
    """num_samples in the order in which it grew."""
    changes: dict[str, Any]
    """Dotted key -> value that all trials change in the base experiment."""
    configs: tuple[ExperimentConfig, ...]
    """Experiments of all points; if Optuna draws the points, of the corners of the search space."""
    fine_tuned: tuple[ExperimentConfig, ...] = ()
    """Experiments of the fine-tunings of these points, without the checkpoints that they start from; none without `then`."""
    searched: Path | None = None
    """In the plan of the fine-tunings, the folder of the sweep, which has the searched trials."""

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
    _check_workers([base])
    if remote_of(base.storage.folder):
        raise SweepError(
            f"storage.path = {base.storage.path}: the trials of a sweep share a folder, which must be on a file system that "
            "every node mounts: set such a path (`set` in the sweep, or --set storage.path=...)"
        )
    folder = sweep_folder(base.storage.folder, sweep.name)
    counts = sample_counts(folder, sweep)
    known = None if sweep.search == "optuna" else tuple(list_points(sweep, base, counts))
    tried = list(corner_points(sweep, base) if known is None else known)
    configs = point_configs(sweep, base, for_all, tried)
    fine_tuned = fine_tuned_configs(sweep, for_all, tried)
    _check_workers(fine_tuned)
    if known is None:
        _check_ranges(sweep, for_all)
    points = None if known is None else dict(enumerate(known))
    return Plan(sweep, folder, base, points, tuple(counts), for_all, configs, fine_tuned)


def plan_fine_tuning(plan: Plan, chosen: Sequence[TrialState] | None = None) -> Plan:
    """Returns the plan of the fine-tunings of a sweep, which trains all of them to the end.

    Args:
        plan: plan of a sweep that hands trials to fine-tuning.
        chosen: the trials; None before the search, when it is unknown which they will be.
    """
    sweep = plan.sweep
    assert sweep.then is not None, "the sweep hands trials to fine-tuning"
    number = min(sweep.then.keep, plan.num_trials) if chosen is None else len(chosen)
    to_the_end = {"num_samples": number, "scheduler": SchedulerConfig(kind="none")}
    points = None if chosen is None else {state.number: fine_tuned_point(sweep, state.point) for state in chosen}
    return Plan(
        sweep=sweep.model_copy(update=to_the_end),
        folder=then_folder(plan.folder),
        base=plan.fine_tuned[0],  # the others differ in the keys of the space, which has no resources
        points=points,
        sample_counts=(number,),
        changes={**plan.changes, **sweep.then.changes},
        configs=plan.fine_tuned
        if chosen is None
        else fine_tuned_configs(sweep, plan.changes, [state.point for state in chosen]),
        searched=plan.folder,
    )


def _check_workers(configs: Iterable[ExperimentConfig]) -> None:
    """Raises SweepError if the number of workers of a trial or a fine-tuning is elastic."""
    if any(config.resources.is_elastic for config in configs):
        raise SweepError(
            "resources.workers is a range, but the trials of a sweep need a fixed number of workers: set it, e.g. with "
            "--set resources.workers=1"
        )


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
