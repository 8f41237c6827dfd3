"""`waver doctor`: all checks of an experiment, each by itself, so that everything that is wrong is found at once."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import torch

from waver.config import ConfigError, ExperimentConfig, load_config
from waver.doctor import data, machine
from waver.doctor.findings import CheckedStage, Finding, as_json, attempt, can_start, independently, size, summary
from waver.doctor.stages import check_phrases, check_training, find_store
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
from waver.on_ray.doctor.exchange import check_exchange
from waver.on_ray.doctor.nodes import check_nodes
from waver.runs.environment import environment
from waver.runs.folder import newest_checkpoint
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
    output: Path | None = None,
) -> list[Finding]:
    """Checks an experiment, shows what was found, and writes all of it as JSON.

    Args:
        path: YAML file of the experiment.
        overrides: gives those of the command line, or raises ConfigError.
        before: the stage that is to start.
        show: is given what was found.
        output: of the report; by default `<storage>/doctor/<name>.json`.
    """
    try:
        config = load_config(path, overrides())
    except ConfigError as error:
        config = None
        findings = [Finding("error", "configuration", str(error), "mend it, and ask again: nothing else was checked")]
    else:
        loaded = Finding("ok", "configuration", f"{path}, named {config.name}, digest {config.digest()}")
        findings = [loaded, *examine(config, before=before)]
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
            remedy = "choose a place for it with --output"
            findings.append(
                Finding(
                    "error", "report", f"{display_path(report)} cannot be written ({error.strerror or error})", remedy
                )
            )
            report = None
    show(findings)
    verdict = (
        f"`waver {before} {path}` can start now" if can_start(findings) else f"`waver {before} {path}` cannot start"
    )
    logger.info(f"{summary(findings)}: {verdict}")
    if report:
        logger.info(f"all in full: {display_path(report)}")
    if config and (step := next_step(config, findings)):
        logger.info(f"next: waver {step} {path}")
    return findings


def examine(config: ExperimentConfig, *, before: CheckedStage) -> list[Finding]:
    """All that is found before a stage of an experiment starts."""
    try:  # once, rather than each check by itself
        check_bucket(config.storage.folder)
    except ObjectStoreError as error:
        return [Finding("error", "storage", str(error), "nothing else was checked")]
    findings: list[Finding] = []

    def check(name: str, function: Callable[..., Iterator[Finding]], *arguments: Any, **options: Any) -> None:
        logger.info(f"checking {name}")
        findings.extend(independently(name, function, *arguments, **options))

    logger.info("checking annotations")
    captions, found = attempt("annotations", data.read_captions, config)
    findings += found
    store, model, trains = None, None, before == "train"
    if captions is None:
        skipped = "splits, videos, decoding, duplicates, clips and the run"
        findings.append(Finding("info", "not checked", f"without a caption table: {skipped}"))
    else:
        check("splits", data.check_splits, config, captions)
        check("videos", data.check_videos, config, captions)
        check("decoding", data.check_decoding, config, captions, level="error" if before == "ingest" else "warning")
        logger.info("checking the clip store")
        store, found = attempt("clip store", find_store, config, captions, needed=before != "ingest")
        findings += found
        check("duplicates", data.check_duplicates, captions, store)
    logger.info("checking the model")
    model, found = attempt("model", machine.measure_model, config, needed=before != "ingest")
    findings += found
    check("weights", _check_weights, config, before=before)
    check("dictionary and knowledge", check_phrases, config, captions, store, before=before)
    if captions is not None:
        check("run", check_training, config, captions, store, needed=trains)
    check("disk", machine.check_disk, config, captions, store, model, trains=trains)
    check("cluster and memory", check_cluster, config, captions, model, before=before)
    # What starts a Ray of its own has one node, and nothing to be tried on it.
    if (ray.is_initialized() or cluster_address()) and can_start(f for f in findings if f.check == "cluster"):
        with connect():
            check("nodes", check_nodes, config)
            if (
                before == "train"
                and model
                and can_start(f for f in findings if f.check in ("connections", "shared storage"))
            ):
                check("all-reduce", check_exchange, config, gradient_bytes=4 * model.trained)
    return findings


def _check_weights(config: ExperimentConfig, *, before: CheckedStage) -> Iterator[Finding]:
    resumes = before == "train" and newest_checkpoint(config.run_folder) is not None
    yield from machine.check_model_weights(config, needed=before != "ingest" and not resumes)


def check_cluster(
    config: ExperimentConfig, captions: pa.Table | None, model: machine.ModelSize | None, *, before: CheckedStage
) -> Iterator[Finding]:
    """Whether the workers find room, on the cluster of RAY_ADDRESS or on this machine, where no Ray is started."""
    gpu_bytes = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    elsewhere = ray.is_initialized() or cluster_address()
    asked = config.resources.gpus_per_worker
    if elsewhere:
        try:
            with connect() as where:
                cluster, gpus = nodes(config.resources.node_labels), gpus_per_worker(config.resources)
                have = cluster_size(config.resources.node_labels)
                if before == "ingest":
                    count_cpus(config.ingest.node_labels)
        except (ClusterTooSmallError, ClusterUnreachableError, ConnectionError, ray.exceptions.RayError) as error:
            yield Finding("error", "cluster", str(error))
            return
        yield Finding("ok", "cluster", where)
    else:
        cluster = [{"CPU": float(local_cpus(config)), "GPU": float(len(gpu_bytes))}]
        gpus = float(bool(gpu_bytes)) if asked is None else asked
        have = f"{cluster[0]['CPU']:g} CPUs and {cluster[0]['GPU']:g} GPUs"
        names = [f"{torch.cuda.get_device_name(i)}, {size(b)}" for i, b in enumerate(gpu_bytes)]
        found = f"this machine: {os.cpu_count()} CPUs, {'; '.join(names) if names else 'no GPU that torch sees'}"
        yield Finding("ok", "cluster", found)
        labels = config.ingest.node_labels if before == "ingest" else config.resources.node_labels
        if labels:
            remedy = "set RAY_ADDRESS to that of a cluster, or the node_labels of ingest and resources to {}"
            yield Finding("error", "cluster", f"this machine alone has no labels, and {labels} are asked for", remedy)
    if before != "ingest":
        yield from _check_capacity(config, cluster, gpus, have, before=before)
    if gpus == 0 and asked is None and model and model.trained > 5e7:
        found = f"no GPU: {model.trained / 1e6:.0f} M parameters would be trained on CPUs"
        yield Finding(
            "warning", "cluster", found, "that takes days; is CUDA_VISIBLE_DEVICES set, is torch built with CUDA?"
        )
    if model:
        num_phrases = 0
        if config.uses_knowledge and exists(config.knowledge_store / "manifest.json"):
            num_phrases = Knowledge(config.knowledge_store).num_phrases
        # Of GPUs elsewhere nothing is known but their number.
        memory = [] if gpus == 0 else gpu_bytes
        ram = None if elsewhere else available_memory()
        if gpus == 0 or gpu_bytes:
            yield from machine.check_memory(config, captions, model, num_phrases=num_phrases, gpus=memory, ram=ram)


def _check_capacity(
    config: ExperimentConfig, cluster: list[dict[str, float]], gpus: float, have: str, *, before: CheckedStage
) -> Iterator[Finding]:
    resources = config.resources
    beside = resources.loaders_per_worker * CPUS_PER_LOADER if before == "train" else 0.0
    cpus = resources.cpus_per_worker + beside
    capacity, worker = count_fitting_workers(cluster, cpus, gpus), WorkerResources(cpus, gpus)
    if capacity >= resources.min_workers:
        asked = f"{resources.min_workers} to {resources.max_workers}" if resources.is_elastic else resources.max_workers
        yield Finding("ok", "workers", f"{asked} with {worker} each; there is capacity for {capacity}")
        return
    sentence = cluster_too_small(resources.min_workers, worker, capacity, have)
    waits = resources.wait_s > 0
    remedy = f"resources.wait_s = {resources.wait_s:g}: it will be waited for" if waits else ""
    yield Finding("warning" if waits else "error", "workers", str(sentence), remedy)


def next_step(config: ExperimentConfig, findings: list[Finding]) -> str:
    """The stage to be run first, if nothing but its result is missing; empty where there is none, or more to be mended."""
    wanting = {finding.check for finding in findings if finding.level == "error"}
    stages = {"clip store": "ingest", "dictionary": "vocabulary", "knowledge": "match"}
    if not wanting or wanting - stages.keys():
        return ""
    step = stages[next(name for name in stages if name in wanting)]
    no_dictionary = not config.knowledge.released and not exists(config.dictionary / "manifest.json")
    return "vocabulary" if step == "match" and no_dictionary else step
