"""Describes the plan of a sweep without running it (`waver tune --dry-run`): trials, resources, memory and cost."""

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import ray
import torch

from waver.config import ExperimentConfig
from waver.evaluation.confidence import find_small_validation
from waver.on_ray.cluster.capacity import WorkerResources, cluster_too_small, count_fitting_workers
from waver.on_ray.cluster.connection import cluster_address, cluster_size, connect, gpus_per_worker, nodes
from waver.on_ray.tuning.plan import Plan, local_nodes, plan_fine_tuning, trials_at_once
from waver.on_ray.tuning.shared import check_shared, find_shared
from waver.runs.inputs import load_captions
from waver.sweeps.extension import check_sweep
from waver.sweeps.folder import SweepError, read_trials
from waver.sweeps.then import choose_trials
from waver.tools.errors import WaverError
from waver.tools.names import counted
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


def describe_plan(plan: Plan) -> None:
    """Logs the plan of a sweep: trials, resources, trials at a time, memory, and which artifacts exist. Starts no trial.

    Raises:
        SweepError: after the plan, if the sweep cannot run here, with everything that is missing.
    """
    missing: list[str] = []
    at_once, gpus = _count_at_once(plan, missing)
    with _added_to(missing):
        check_sweep(plan.folder, plan.sweep, plan.base)
    _describe_trials(plan)
    forward: dict[str, ForwardFlops] = {}
    _describe_stage(plan, at_once, gpus, missing, forward, what="trial")
    if plan.sweep.then:
        then = plan_fine_tuning(plan)
        if then.base.resources != plan.base.resources:
            at_once, gpus = _count_at_once(then, missing)
        _describe_fine_tuning(plan, then)
        _describe_stage(then, min(at_once, then.num_trials), gpus, missing, forward, what="fine-tuning")
    with _added_to(missing):
        if small := find_small_validation(load_captions(plan.base)):
            logger.warning("; ".join(small))
        _describe_shared(plan)
    if missing:
        missing = list(dict.fromkeys(missing))
        raise SweepError("\n".join(["the sweep cannot run here:", *(f"  {sentence}" for sentence in missing)]))


def _count_at_once(plan: Plan, missing: list[str]) -> tuple[int, float]:
    """Returns how many trials run at a time, and the GPUs of each worker.

    If not one trial fits, the number is 0, and the reason is added to what is missing.
    """
    resources = plan.base.resources
    at_once, gpus = 0, resources.gpus_per_worker or 0.0
    with _added_to(missing):
        cluster, gpus, size = _find_cluster(plan)
        at_once = trials_at_once(plan, cluster, gpus)
        if at_once == 0:
            capacity = count_fitting_workers(cluster, plan.cpus_per_worker, gpus)
            raise cluster_too_small(resources.max_workers, WorkerResources(plan.cpus_per_worker, gpus), capacity, size)
    return at_once, gpus


def _describe_stage(
    plan: Plan, at_once: int, gpus: float, missing: list[str], forward: dict[str, ForwardFlops], *, what: str
) -> None:
    """Logs resources, memory and cost of the search, or of the fine-tunings.

    Args:
        plan: plan of the search, or of the fine-tunings.
        at_once: how many of its trials run at a time.
        gpus: GPUs of each worker.
        missing: receives what is missing.
        forward: see `cost_estimate`.
        what: `trial` or `fine-tuning`.
    """
    workers = counted(plan.base.resources.max_workers, "worker")
    logger.info(
        f"a {what} takes {workers} with {plan.cpus_per_worker:g} CPU and {gpus:g} GPU each; "
        + (f"{at_once} at a time" if at_once else "not one fits here")
    )
    with _added_to(missing):
        logger.info(memory_estimate(plan, max(at_once, 1), what=what))
    with _added_to(missing):
        try:
            name = "run" if what == "trial" else what
            logger.info(cost_estimate(plan, load_captions(plan.base), what=name, forward=forward))
        except CostError as error:
            logger.info(str(error))


def _describe_fine_tuning(plan: Plan, then: Plan) -> None:
    """Logs which trials are fine-tuned, and with which changes."""
    assert plan.sweep.then is not None, "the sweep hands trials to fine-tuning"
    best = [str(state.number) for state in choose_trials(read_trials(plan.folder), plan.sweep)]
    so_far = f" (so far {', '.join(best)})" if best else ""
    seeds = f", {plan.sweep.repeats} seeds each" if plan.sweep.repeats > 1 else ""
    changed = ", ".join(f"{key}={value}" for key, value in plan.sweep.then.changes.items())
    number = f"the {then.num_trials} best trials" if then.num_trials > 1 else "the best trial"
    logger.info(f"then: fine-tuning of {number}{so_far}, from their best checkpoints, with {changed}{seeds}")


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
    for number, point in (plan.points or {}).items():
        logger.info(f"  {number:4d}  {', '.join(f'{key}={value}' for key, value in point.items())}")


def _describe_shared(plan: Plan) -> None:
    for artifact in find_shared(plan.configs, fine_tuned=plan.fine_tuned, count=plan.points is not None):
        state = "exists and will be reused" if artifact.there else "will be made once"
        users = f" ({artifact.trials} trials)" if artifact.trials else ""
        logger.info(f"{artifact.what}: {state}: {artifact.path}{users}")
    check_shared([*plan.configs, *plan.fine_tuned])


def memory_estimate(plan: Plan, at_once: int, *, what: str = "trial") -> str:
    """Estimates the memory of a trial without running it.

    Args:
        plan: plan of the search, or of the fine-tunings.
        at_once: how many of its trials run at a time.
        what: `trial` or `fine-tuning`.

    Returns:
        A sentence for the user: GiB per trial, and for `at_once` trials together.
    """
    most = max(_bytes_of(config) for config in _different(plan.configs)) / 2**30
    return (
        f"estimated memory: {most:.2f} GiB per {what} for weights, gradients, optimizer and frames, {at_once * most:.2f} "
        "GiB at a time; activations and each process's libraries (about 1 GiB) come on top"
    )


def _different(configs: Sequence[ExperimentConfig]) -> list[ExperimentConfig]:
    """Returns one of the experiments for each model, batch and set of frozen parts."""

    def key(config: ExperimentConfig) -> str:
        sections = config.model_dump_json(include={"model", "video", "text", "similarity", "resources"})
        train = config.train.model_dump_json(include={"global_batch_size", "freeze"})
        return f"{sections} {train} {config.frozen_towers} {config.fusion_kind} {config.loss.kind}"

    return list({key(config): config for config in configs}.values())


def _bytes_of(config: ExperimentConfig) -> int:
    """Returns the estimated bytes of all workers of a run: weights, gradients, optimizer and frames."""
    with torch.device("meta"):
        student = build_student(config)
        freeze_student(student, config)
        counts = [(p.numel(), p.requires_grad) for p in student.parameters()]
    workers = config.resources.max_workers
    pairs = -(-config.train.global_batch_size // workers)
    reads_embeddings = "vision" in config.frozen_towers and config.embeddings.use != "never"
    frame = 4 * student.backbone.width if reads_embeddings else 3 * config.preprocessing.size**2
    # Weights, and of those that are trained gradients and the two moments of AdamW; this batch and one read ahead.
    values = sum(4 * number if is_trained else number for number, is_trained in counts)
    return workers * (4 * values + 2 * pairs * config.video.max_frames * frame)


def cost_estimate(
    plan: Plan, captions: pa.Table, *, what: str = "run", forward: dict[str, ForwardFlops] | None = None
) -> str:
    """Estimates the floating-point operations of the trials without running them.

    Args:
        plan: plan of the search, or of the fine-tunings.
        captions: caption table of the base experiment.
        what: `run` or `fine-tuning`.
        forward: the operations of each model that is known already; receives those of the others.

    Returns:
        A sentence for the user: those of one run, GPU-hours of the sweep if no trial is stopped, and with its scheduler.

    Raises:
        CostError: if they cannot be estimated.
    """
    sweep, costs = plan.sweep, _costs(plan.configs, captions, {} if forward is None else forward)
    most = max(costs, key=lambda cost: cost.flops)
    trials = costs if plan.points is not None else [most] * plan.num_trials
    trained = sweep.repeats * sum(cost.gpu_hours - cost.embedding_hours for cost in trials)
    # Runs that read the same stores embed once, at most all that one of them reads.
    stores = {(config.frame_embeddings, config.token_embeddings): 0.0 for config in plan.configs}
    for config, cost in zip(plan.configs, costs, strict=True):
        key = (config.frame_embeddings, config.token_embeddings)
        stores[key] = max(stores[key], cost.embedding_hours)
    embedding = sum(stores.values())
    epochs = max(config.train.epochs for config in plan.configs) * sweep.repeats
    reduction = float(sweep.scheduler.reduction_factor)
    share = asha_share(epochs, sweep.scheduler.grace_epochs, reduction) if sweep.scheduler.kind == "asha" else 1.0
    least = share * trained + embedding
    stopped = (
        f" if none is stopped, about {format_hours(least)} if asha keeps 1 of {reduction:g} trials at each step"
        if share < 1 and least > MINUTE_H
        else ""
    )
    return (
        f"estimated computation of a {what}: at most {most.describe()}; of all {plan.num_trials * sweep.repeats} {what}s: "
        f"{format_hours(trained + embedding)}{stopped}"
    )


def _costs(
    configs: Sequence[ExperimentConfig], captions: pa.Table, forward: dict[str, ForwardFlops]
) -> list[TrainingCost]:
    """Returns the cost of each experiment; the parts of a student are counted once for each model."""
    costs: list[TrainingCost] = []
    for config in configs:
        model = config.model_dump_json(include={"model", "video", "text", "similarity", "knowledge"})
        key = f"{config.fusion_kind} {model}"
        if key not in forward:
            forward[key] = count_forward(config)
        costs.append(training_cost(config, captions, forward[key]))
    return costs


def asha_share(num_epochs: int, grace_epochs: int, reduction_factor: float) -> float:
    """Returns the share of all epochs that are trained if ASHA stops as many trials as it may, at each of its steps."""
    trained, remaining, last, step = 0.0, 1.0, 0.0, float(grace_epochs)
    while step < num_epochs:
        trained += remaining * (step - last)
        remaining, last, step = remaining / reduction_factor, step, step * reduction_factor
    return (trained + remaining * (num_epochs - last)) / num_epochs
