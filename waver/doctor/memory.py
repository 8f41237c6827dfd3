"""Checks of memory: compares an estimate of what training needs with the memory of the GPUs and of the machine."""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import torch

from waver.config import ExperimentConfig
from waver.data.annotations.captions import count_split
from waver.doctor.findings import Finding, format_bytes
from waver.doctor.machine import ModelSize
from waver.tools.names import counted

_PROCESS_BYTES = 2**30
"""Approximate memory of the libraries in the process of a worker or loader."""
_NORMALISED = 4
"""Bytes of a value of a pixel after normalisation, in fp32; before, it has one byte."""


def check_memory(
    config: ExperimentConfig,
    captions: pa.Table | None,
    model: ModelSize,
    *,
    num_phrases: int,
    gpus: Sequence[int],
    ram: int | None,
) -> Iterator[Finding]:
    """Compares an estimate of the memory that training needs with the memory of the GPUs and of the machine.

    Args:
        config: configuration of the experiment.
        captions: its caption table, or None if it cannot be read.
        model: sizes of its student.
        num_phrases: number of phrases in the dictionary; 0 without knowledge.
        gpus: bytes of memory of each GPU of the workers; empty if they compute on CPUs.
        ram: bytes of memory of this machine; None if the workers run elsewhere.
    """
    resources = config.resources
    parts = _device_memory(config, captions, model, num_phrases=num_phrases, on_gpus=bool(gpus))
    batch = _pairs_of_worker(config, captions) * _values_of_frames(config)
    device = sum(parts.values())
    loaders = max(1, resources.loaders_per_worker)
    host = (1 + resources.loaders_per_worker) * _PROCESS_BYTES + (2 + loaders) * batch
    details = {"worker": parts, "host_of_worker": host, "activations_known": model.activation_bytes is not None}
    unknown = "" if model.activation_bytes is not None else "; activations of these towers are unknown and not included"
    by_size = sorted(parts.items(), key=lambda part: -part[1])
    largest = ", ".join(f"{format_bytes(value)} {name}" for name, value in by_size[:3])
    remedy = (
        "set train.micro_batch_size or train.grad_checkpointing, lower train.global_batch_size, or use more workers; frozen "
        "parts of the backbone (train.freeze) keep no activations"
    )
    if gpus:
        found = f"estimate {format_bytes(device)} of {format_bytes(min(gpus))} of the GPU ({largest}){unknown}"
        fits = device <= min(gpus)
        yield Finding("ok" if fits else "warning", "memory of a GPU", found, "" if fits else remedy, details)
    else:
        host += device
    needed, workers = resources.max_workers * host, counted(resources.max_workers, "worker")
    found = f"estimate {format_bytes(needed)} for {workers} and their input"
    found += "" if gpus else f" (each: {largest}){unknown}"
    if not gpus and ram is not None and (hint := precision_hint(config, torch.cpu.get_capabilities())):
        yield Finding("info", "precision", hint)
    if ram is None:
        yield Finding("info", "memory", f"{found}; compare with the memory of the cluster's nodes", details=details)
        return
    fits = needed <= ram
    lower = "resources.workers, loaders_per_worker" if resources.loaders_per_worker else "resources.workers"
    remedy = f"set train.micro_batch_size, or lower {lower} or train.global_batch_size"
    found = f"{found}, of {format_bytes(ram)}"
    yield Finding("ok" if fits else "warning", "memory", found, "" if fits else remedy, details)


def precision_hint(config: ExperimentConfig, cpu: Mapping[str, object]) -> str:
    """Returns how to choose bf16 on a CPU that computes it natively; empty for other CPUs, or if train.precision is set.

    Args:
        config: configuration of the experiment, whose workers compute on CPUs.
        cpu: `torch.cpu.get_capabilities()`.
    """
    if config.train.precision != "auto" or not any(has for name, has in cpu.items() if name.endswith("bf16")):
        return ""
    return (
        "train.precision = auto computes in fp32 on CPUs. This CPU computes bf16 natively, which is faster and halves the "
        "memory of activations: choose it with train.precision = bf16. Nobody has measured its effect on metrics"
    )


def _device_memory(
    config: ExperimentConfig, captions: pa.Table | None, model: ModelSize, *, num_phrases: int, on_gpus: bool
) -> dict[str, int]:
    """Returns purpose -> estimated bytes on the device of one worker."""
    workers, precision, pairs = config.resources.min_workers, config.train.precision, _pairs_of_worker(config, captions)
    at_once = min(pairs, config.train.micro_batch_size or pairs)
    half = precision == "bf16" or (precision == "auto" and on_gpus)
    texts = 0 if captions is None else pc.sum(pc.equal(captions["split"], "validation")).as_py() or 0
    return {
        "weights, gradients, AdamW": 4 * (model.num_parameters + 3 * model.num_trained),
        "activations of the towers": (model.activation_bytes or 0) * at_once // (2 if half else 1)
        + 4 * model.num_adapted,
        "frames of a batch": (pairs + _NORMALISED * at_once) * _values_of_frames(config),
        "phrases": 4 * num_phrases * model.embed_dim,
        # Validation keeps the embeddings of all tokens of the worker's captions.
        "captions of validation": 4 * model.embed_dim * config.text.max_words * texts // workers,
    }


def _pairs_of_worker(config: ExperimentConfig, captions: pa.Table | None) -> int:
    """Returns the largest number of pairs of a global batch that one worker computes.

    A batch contains no clip twice, and so has at most as many pairs as there are training clips.
    """
    num_clips = 0 if captions is None else count_split(captions, "train")[0]
    batch = min(config.train.global_batch_size, num_clips or config.train.global_batch_size)
    return -(-batch // config.resources.min_workers)


def _values_of_frames(config: ExperimentConfig) -> int:
    """Returns the number of values in the frames of a clip, three a pixel."""
    return config.video.max_frames * 3 * config.preprocessing.size**2
