"""Checks of capacity: whether a cluster, or the Ray that a stage starts on this machine, has room for its workers."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import ray
import torch

from waver.config import ExperimentConfig
from waver.doctor import machine, memory
from waver.doctor.findings import CheckedStage, Finding, Stage, format_bytes
from waver.knowledge.store import Knowledge
from waver.on_ray.cluster.capacity import (
    CPUS_PER_LOADER,
    ClusterTooSmallError,
    WorkerResources,
    cluster_too_small,
    count_cpus,
    count_fitting_workers,
    local_cpus,
)
from waver.on_ray.cluster.connection import cluster_address, cluster_size, connect, gpus_per_worker, nodes
from waver.on_ray.cluster.reachability import (
    ClusterUnreachableError,
    TemporaryFolderError,
    check_reachable,
    check_temporary_folder,
)
from waver.tools.memory import available_memory
from waver.tools.object_store import exists


def check_before_ray(config: ExperimentConfig, *, before: Stage) -> Iterator[Finding]:
    """Checks what can be known before Ray is started on this machine, or the cluster of RAY_ADDRESS is joined.

    Args:
        config: configuration of the experiment.
        before: the stage that is to start.
    """
    if ray.is_initialized():
        return
    if address := cluster_address():
        try:
            check_reachable(address)
        except ClusterUnreachableError as error:
            yield Finding("error", "cluster", str(error))
        return
    yield from _check_this_machine(config, before)
    if before in ("embed", "match", "train", "tune"):
        yield _check_workers(config, _machine_capacity(config), before=before)


def _check_this_machine(config: ExperimentConfig, before: Stage) -> Iterator[Finding]:
    """Checks whether Ray can start on this machine, and whether nodes with labels are required, which it is not."""
    try:
        check_temporary_folder()
    except TemporaryFolderError as error:
        yield Finding("error", "temporary folder", str(error))
    labels = config.ingest.node_labels if before in ("ingest", "vocabulary") else config.resources.node_labels
    if labels:
        found = f"the node labels {labels} are required, but this machine has no labels"
        remedy = "set RAY_ADDRESS to the address of a cluster, or ingest.node_labels and resources.node_labels to {}"
        yield Finding("error", "cluster", found, remedy)


def check_cluster(
    config: ExperimentConfig, captions: pa.Table | None, model: machine.ModelSize | None, *, before: CheckedStage
) -> Iterator[Finding]:
    """Checks whether the cluster, or this machine if RAY_ADDRESS is unset, has capacity for the workers.

    Does not start Ray on this machine.

    Args:
        config: configuration of the experiment.
        captions: its caption table, or None if it cannot be read.
        model: sizes of its student, or None if it cannot be built.
        before: the stage that is to start.
    """
    gpu_bytes = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    on_cluster = bool(ray.is_initialized() or cluster_address())
    try:
        capacity = _cluster_capacity(config, before) if on_cluster else _machine_capacity(config, gpu_bytes)
    except (ClusterTooSmallError, ClusterUnreachableError, ConnectionError, ray.exceptions.RayError) as error:
        yield Finding("error", "cluster", str(error))
        return
    yield Finding("ok", "cluster", capacity.description)
    if not on_cluster:
        yield from _check_this_machine(config, before)
    if before not in ("ingest", "vocabulary"):
        yield _check_workers(config, capacity, before=before)
    gpus = capacity.gpus_per_worker
    if gpus == 0 and config.resources.gpus_per_worker is None and model and model.num_trained > 5e7:
        found = f"no GPU: {model.num_trained / 1e6:.0f} M parameters would be trained on CPUs"
        remedy = "training would take days; check CUDA_VISIBLE_DEVICES, and whether torch is built with CUDA"
        yield Finding("warning", "cluster", found, remedy)
    # The memory of a cluster's GPUs is unknown: Ray gives only their number.
    if model and (gpus == 0 or gpu_bytes):
        num_phrases = 0
        if config.uses_knowledge and exists(config.knowledge_store / "manifest.json"):
            num_phrases = Knowledge(config.knowledge_store).num_phrases
        of_gpus = [] if gpus == 0 else gpu_bytes
        ram = None if on_cluster else available_memory()
        yield from memory.check_memory(config, captions, model, num_phrases=num_phrases, gpus=of_gpus, ram=ram)


@dataclass(frozen=True)
class _Capacity:
    """Resources for the workers of an experiment."""

    description: str
    nodes: list[dict[str, float]]
    """`CPU` and `GPU` of each node that may have workers."""
    gpus_per_worker: float
    size: str
    """The sum of these resources, for messages."""


def _cluster_capacity(config: ExperimentConfig, before: CheckedStage) -> _Capacity:
    labels = config.resources.node_labels
    with connect() as description:
        capacity = _Capacity(description, nodes(labels), gpus_per_worker(config.resources), cluster_size(labels))
        if before in ("ingest", "vocabulary"):
            count_cpus(config.ingest.node_labels)  # raises ClusterTooSmallError if no node has the labels
    return capacity


def _machine_capacity(config: ExperimentConfig, gpu_bytes: list[int] | None = None) -> _Capacity:
    """Returns the capacity of this machine; without `gpu_bytes` it only counts GPUs, which takes no memory of them."""
    requested = config.resources.gpus_per_worker
    cpus, gpus = float(local_cpus(config)), float(torch.cuda.device_count())
    sizes = enumerate(gpu_bytes or ())
    names = [f"{torch.cuda.get_device_name(i)}, {format_bytes(num_bytes)}" for i, num_bytes in sizes]
    return _Capacity(
        f"this machine: {os.cpu_count()} CPUs, {'; '.join(names) or 'no GPU visible to torch'}",
        [{"CPU": cpus, "GPU": gpus}],
        float(gpus > 0) if requested is None else requested,
        f"{cpus:g} CPUs and {gpus:g} GPUs",
    )


def _check_workers(config: ExperimentConfig, capacity: _Capacity, *, before: Stage) -> Finding:
    resources, gpus = config.resources, capacity.gpus_per_worker
    loader_cpus = resources.loaders_per_worker * CPUS_PER_LOADER if before == "train" else 0.0
    cpus = resources.cpus_per_worker + loader_cpus
    num_fitting, worker = count_fitting_workers(capacity.nodes, cpus, gpus), WorkerResources(cpus, gpus)
    if num_fitting >= resources.min_workers:
        count = f"{resources.min_workers} to {resources.max_workers}" if resources.is_elastic else resources.max_workers
        return Finding("ok", "workers", f"{count} with {worker} each; there is capacity for {num_fitting}")
    error = cluster_too_small(resources.min_workers, worker, num_fitting, capacity.size)
    if resources.wait_s > 0:
        remedy = f"the stage will wait for resources, up to resources.wait_s = {resources.wait_s:g} s"
        return Finding("warning", "workers", str(error), remedy)
    return Finding("error", "workers", str(error))
