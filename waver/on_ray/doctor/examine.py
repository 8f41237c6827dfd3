"""`waver doctor`: runs all checks of an experiment, independently of each other, so that one run reports all problems."""

import logging
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import torch

from waver.config import ConfigError, ExperimentConfig, load_config
from waver.doctor import data, machine
from waver.doctor.findings import (
    CheckedStage,
    Finding,
    as_json,
    can_start,
    count_levels,
    format_bytes,
    load_checked,
    run_check,
)
from waver.doctor.stages import check_phrases, check_training, check_writers, find_store
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
from waver.on_ray.cluster.connection import (
    ClusterUnreachableError,
    cluster_address,
    cluster_size,
    connect,
    gpus_per_worker,
    nodes,
)
from waver.on_ray.doctor.all_reduce import check_all_reduce
from waver.on_ray.doctor.nodes import check_nodes
from waver.runs.environment import environment
from waver.runs.folder import newest_checkpoint
from waver.tools.commands import complete_commands
from waver.tools.files import write_json
from waver.tools.memory import available_memory
from waver.tools.object_store import ObjectStoreError, check_bucket, display_path, exists

logger = logging.getLogger(__name__)


def run_doctor(
    path: Path,
    overrides: Callable[[], Mapping[str, Any]],
    *,
    before: CheckedStage,
    show: Callable[[list[Finding]], None],
    arguments: str = "",
    output: Path | None = None,
) -> list[Finding]:
    """Checks an experiment, prints the findings, and writes a report with all details.

    Args:
        path: YAML file of the experiment.
        overrides: returns the overrides of the command line, dotted key -> value, or raises ConfigError.
        before: the stage that is to start.
        show: prints the findings.
        arguments: that name the experiment in a command, with its overrides; by default its path.
        output: JSON file of the report; by default `<storage>/doctor/<name>.json`.

    Returns:
        The findings; a configuration error is one of them.
    """
    try:
        config = load_config(path, overrides())
    except ConfigError as error:
        config = None
        findings = [
            Finding(
                "error",
                "configuration",
                str(error),
                "correct it, and run `waver doctor CONFIG`: nothing else was checked",
            )
        ]
    else:
        loaded = Finding("ok", "configuration", f"{path}, named {config.name}, digest {config.digest()}")
        findings = [loaded, *examine(config, before=before)]
    arguments = arguments or shlex.quote(str(path))
    findings = [
        replace(one, found=complete_commands(one.found, arguments), remedy=complete_commands(one.remedy, arguments))
        for one in findings
    ]
    report = output or (config and config.storage.folder / "doctor" / f"{config.name}.json")
    if report:
        content = {
            "experiment": str(path),
            "config": config and config.digest(),
            "before": before,
            "can_start": can_start(findings),
            "findings": as_json(findings),
            "environment": environment(),
        }
        try:
            write_json(report, content)
        except OSError as error:
            found = f"{display_path(report)} cannot be written ({error.strerror or error})"
            findings.append(Finding("error", "report", found, "choose another file with --output"))
            report = None
    show(findings)
    verdict = "can start" if can_start(findings) else "cannot start"
    logger.info(f"{count_levels(findings)}: `waver {before} {arguments}` {verdict}")
    if report:
        logger.info(f"report with all details: {display_path(report)}")
    if config and (stage := next_stage(config, findings)):
        logger.info(f"next: waver {stage} {arguments}")
    return findings


def examine(config: ExperimentConfig, *, before: CheckedStage) -> list[Finding]:
    """Runs all checks of an experiment before a stage of it; returns their findings."""
    try:  # first, because without the object store every check would fail
        check_bucket(config.storage.folder)
    except ObjectStoreError as error:
        return [Finding("error", "storage", str(error), "nothing else was checked")]
    findings: list[Finding] = []

    def check(name: str, function: Callable[..., Iterator[Finding]], *arguments: Any, **options: Any) -> None:
        logger.info(f"checking {name}")
        findings.extend(run_check(name, function, *arguments, **options))

    logger.info("checking annotations")
    captions, found = load_checked("annotations", data.read_captions, config)
    findings += found
    store, model, trains = None, None, before == "train"
    if captions is None:
        skipped = "splits, videos, decoding, duplicates, clip store and run"
        findings.append(Finding("info", "not checked", f"{skipped}: they need a caption table"))
    else:
        check("splits", data.check_splits, config, captions)
        check("captions", data.check_caption_lengths, config, captions)
        check("videos", data.check_videos, config, captions)
        check("decoding", data.check_decoding, config, captions, level="error" if before == "ingest" else "warning")
        logger.info("checking the clip store")
        store, found = load_checked("clip store", find_store, config, captions, needed=before != "ingest")
        findings += found
        check("duplicates", data.check_duplicates, captions, store)
    logger.info("checking the model")
    model, found = load_checked("model", machine.measure_model, config, needed=before != "ingest")
    findings += found
    if model and captions is not None:
        check("cost of training", machine.check_cost, config, captions)
    check("weights", _check_weights, config, before=before)
    check("dictionary and knowledge", check_phrases, config, captions, store, before=before)
    if captions is not None:
        check("run", check_training, config, captions, store, needed=trains)
    check("locks", check_writers, config, before=before)
    check("disk", machine.check_disk, config, captions, store, model, trains=trains)
    check("cluster and memory", check_cluster, config, captions, model, before=before)
    # A Ray that waver starts itself has one node: there is nothing to check between nodes.
    if (ray.is_initialized() or cluster_address()) and can_start(f for f in findings if f.check == "cluster"):
        with connect():
            check("nodes", check_nodes, config)
            if (
                before == "train"
                and model
                and can_start(f for f in findings if f.check in ("connections", "shared storage"))
            ):
                check("all-reduce", check_all_reduce, config, gradient_bytes=4 * model.num_trained)
    return findings


def _check_weights(config: ExperimentConfig, *, before: CheckedStage) -> Iterator[Finding]:
    resumes = before == "train" and newest_checkpoint(config.run_folder) is not None
    yield from machine.check_model_weights(config, needed=before != "ingest" and not resumes)


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
    labels = config.ingest.node_labels if before == "ingest" else config.resources.node_labels
    if labels and not on_cluster:
        found = f"the node labels {labels} are required, but this machine has no labels"
        remedy = "set RAY_ADDRESS to the address of a cluster, or ingest.node_labels and resources.node_labels to {}"
        yield Finding("error", "cluster", found, remedy)
    if before != "ingest":
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
        yield from machine.check_memory(config, captions, model, num_phrases=num_phrases, gpus=of_gpus, ram=ram)


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
        if before == "ingest":
            count_cpus(config.ingest.node_labels)  # raises ClusterTooSmallError if no node has the labels
    return capacity


def _machine_capacity(config: ExperimentConfig, gpu_bytes: list[int]) -> _Capacity:
    requested = config.resources.gpus_per_worker
    cpus, gpus = float(local_cpus(config)), float(len(gpu_bytes))
    names = [f"{torch.cuda.get_device_name(i)}, {format_bytes(num_bytes)}" for i, num_bytes in enumerate(gpu_bytes)]
    return _Capacity(
        f"this machine: {os.cpu_count()} CPUs, {'; '.join(names) or 'no GPU visible to torch'}",
        [{"CPU": cpus, "GPU": gpus}],
        float(bool(gpu_bytes)) if requested is None else requested,
        f"{cpus:g} CPUs and {gpus:g} GPUs",
    )


def _check_workers(config: ExperimentConfig, capacity: _Capacity, *, before: CheckedStage) -> Finding:
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


def next_stage(config: ExperimentConfig, findings: list[Finding]) -> str:
    """Returns the stage to run next, if missing results of stages are the only errors; otherwise an empty string."""
    failed = {finding.check for finding in findings if finding.level == "error"}
    stages = {"clip store": "ingest", "dictionary": "vocabulary", "knowledge": "match"}
    if not failed or failed - stages.keys():
        return ""
    stage = stages[next(name for name in stages if name in failed)]
    lacks_dictionary = not config.knowledge.released and not exists(config.dictionary / "manifest.json")
    return "vocabulary" if stage == "match" and lacks_dictionary else stage
