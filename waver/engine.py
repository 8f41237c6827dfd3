"""Training in pure torch: the same functions run in one process, under DDP, and inside Ray.

Here the configuration becomes objects; what lies below takes plain arguments.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from waver import parallel
from waver.annotations import load_didemo, load_msrvtt, load_msvd, load_table, load_vatex
from waver.backbone import VOCABULARY_SIZE, load_backbone, tokenize
from waver.batch import Batch, frames_to_tensor
from waver.clip_store import StoreSettings
from waver.config import ExperimentConfig
from waver.knowledge import Knowledge
from waver.model import Encoded, Student
from waver.objective import loss_terms
from waver.profiling import BACKWARD, FORWARD, LOSS, OPTIMIZER


class NonFiniteLossError(parallel.InStepError):
    """The loss or its gradient is NaN or infinite; the weights were not touched."""


def load_captions(config: ExperimentConfig) -> pa.Table:
    """The caption table of the experiment's data set."""
    data = config.data
    # The loaders take what may stand in their section; a split that is the only one is not chosen.
    settings = data.model_dump(exclude={"format", "annotations", "videos"})
    if data.format in ("msvd", "didemo"):
        del settings["split"]
    loaders = {
        "msrvtt": load_msrvtt,
        "msvd": load_msvd,
        "vatex": load_vatex,
        "didemo": load_didemo,
        "table": load_table,
    }
    return loaders[data.format](data.annotations, data.videos, **settings)


def store_settings(config: ExperimentConfig) -> StoreSettings:
    """How the clips of the experiment are decoded."""
    return StoreSettings(
        frames_per_second=config.video.frames_per_second,
        max_frames=config.video.max_frames,
        size=config.video.size,
        frame_format=config.ingest.frame_format,
        jpeg_quality=config.ingest.jpeg_quality,
    )


@dataclass
class Training:
    """Everything that changes during a run."""

    student: Student
    forward: Callable[..., Encoded]
    """The student, or DDP around it."""
    phrases: Float[Tensor, "P D"]
    """The teacher's embeddings of all phrases: a table, no parameter; P = 0 without knowledge."""
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    epoch: int = 0
    """Epochs completed."""
    step: int = 0
    """Optimizer steps taken."""
    rows: int = 0
    """Rows of captions learned from, each as often as it came up."""


def build_student(config: ExperimentConfig, weights: str | None = None) -> Student:
    """The model of an experiment.

    Args:
        config: of the experiment.
        weights: of the backbone, see `load_backbone`; None where a checkpoint is loaded afterwards.
    """
    torch.manual_seed(config.seed)
    backbone = load_backbone(config.model.backbone, weights, image_size=config.video.size)
    num_positions, num_words = backbone.text.positional_embedding.shape[0], backbone.text.token_embedding.num_embeddings
    needed = config.video.max_frames + (config.similarity.kind == "xti")  # xti puts the sentence before the frames
    if max(needed, config.text.max_words) > num_positions:
        raise ValueError(
            f"model.backbone knows {num_positions} positions: text.max_words = {config.text.max_words} and "
            f"video.max_frames = {config.video.max_frames} must fit into them"
        )
    if num_words != VOCABULARY_SIZE:
        raise ValueError(
            f"model.backbone has a vocabulary of {num_words} tokens, CLIP's tokenizer of {VOCABULARY_SIZE}"
        )
    return Student(
        backbone,
        temporal=config.model.temporal,
        temporal_layers=config.model.temporal_layers,
        similarity=config.similarity.kind,
        wti_layers=config.similarity.wti_layers,
        fusion=config.uses_fusion,
    )


def build_training(
    config: ExperimentConfig,
    *,
    num_steps: int,
    device: torch.device,
    phrases: Float[Tensor, "P D"] | None = None,
    pretrained: bool = True,
) -> Training:
    """Model, optimizer and schedule at the start of a run.

    Args:
        config: of the experiment.
        num_steps: optimizer steps of the whole run.
        device: of the model.
        phrases: the teacher's embeddings; None where the experiment uses no knowledge.
        pretrained: whether to load model.weights; a checkpoint that follows makes it needless.
    """
    student = build_student(config, config.model.weights if pretrained else None).to(device)
    if config.train.backbone_lr_scale == 0:
        student.backbone.requires_grad_(False)
    optimizer = torch.optim.AdamW(parameter_groups(student, config), betas=(0.9, 0.98), eps=1e-6, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, num_steps=num_steps, warmup=config.train.warmup_fraction)
    )
    forward: torch.nn.Module = student
    if parallel.world_size() > 1:
        forward = DistributedDataParallel(student, device_ids=[device] if device.type == "cuda" else None)
    if phrases is None:
        phrases = torch.zeros(0, student.backbone.width)
    if phrases.shape[1] != student.backbone.width:
        raise ValueError(
            f"the teacher's phrases have width {phrases.shape[1]}, model.backbone {student.backbone.width}: match again"
        )
    return Training(student, forward, phrases.to(device), optimizer, schedule)


def warmup_cosine(step: int, *, num_steps: int, warmup: float) -> float:
    """Factor on the learning rate of step `step` (from 0): rises linearly to 1, then falls to 0 as half a cosine."""
    num_warmup = warmup * num_steps
    if step < num_warmup:
        return min(1.0, (step + 1) / num_warmup)
    return 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / max(1, num_steps - num_warmup)))


def make_batch(
    captions: pa.Table,
    rows: Int[np.ndarray, " B"],
    clips: tuple[UInt8[np.ndarray, "B F H W 3"], Int[np.ndarray, " B"]],
    config: ExperimentConfig,
    num_pairs: int,
    knowledge: Knowledge | None = None,
) -> Batch:
    """Joins captions with the frames of their clips, and with their phrases.

    Args:
        captions: caption table.
        rows: which captions.
        clips: what the clip store gives for their clips, in the same order.
        config: of the experiment.
        num_pairs: pairs in the global batch.
        knowledge: of the clips; None for none.
    """
    chosen = captions.take(rows)
    texts = chosen["caption"].to_pylist()
    token_ids, token_mask = tokenize(texts, max_words=config.text.max_words, prompt=config.text.prompt)
    frames, frame_mask = frames_to_tensor(*clips)
    clip_ids = tuple(chosen["clip_id"].to_pylist())
    phrase_ids = torch.zeros(len(rows), 0, dtype=torch.int64)
    if knowledge:
        phrase_ids = knowledge.phrase_ids(clip_ids, config.knowledge.top_k)
    return Batch(token_ids, token_mask, frames, frame_mask, phrase_ids, clip_ids, tuple(texts), num_pairs)


def train_step(training: Training, batch: Batch, config: ExperimentConfig) -> dict[str, float]:
    """One optimizer step over a global batch.

    Returns:
        What to log: loss and terms of the global batch, what is watched beside them (see `waver.diagnostics`), learning
        rates, gradient norm before clipping, logit scale.

    Raises:
        NonFiniteLossError: on every worker, before any weight is changed.
    """
    student = training.student
    student.train()
    terms, watched = batch_terms(training, batch, config)
    loss = sum(config.loss.weights[name] * term for name, term in terms.items())
    training.optimizer.zero_grad(set_to_none=True)
    with record_function(BACKWARD):
        # DDP averages gradients over workers; our loss is a share of a sum.
        (loss * parallel.world_size()).backward()
    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), config.train.clip_grad_norm)

    logged = {f"loss/{name}": term for name, term in terms.items()} | {"loss/total": loss} | watched
    sums = parallel.all_reduce(torch.stack([value.detach() for value in logged.values()]), "sum").tolist()
    logs = dict(zip(logged, sums, strict=True)) | {"grad_norm": norm.item()}
    rates = training.schedule.get_last_lr()
    logs |= {"lr/backbone": rates[0], "lr/new": rates[-1], "logit_scale": student.logit_scale.exp().item()}
    if not all(math.isfinite(value) for value in logs.values()):
        raise NonFiniteLossError(
            f"step {training.step + 1}: loss = {logs['loss/total']}, gradient norm = {logs['grad_norm']}, at "
            f"lr = {rates[-1]:.3g} (backbone {rates[0]:.3g}). No weight was changed by it; the last checkpoint is good. "
            "Lower train.lr, or raise train.warmup_fraction, and run the same command again under a new name"
        )
    with record_function(OPTIMIZER):
        training.optimizer.step()
        training.schedule.step()
        student.clamp_logit_scale()
    training.step += 1
    training.rows += batch.num_pairs
    return logs


def batch_terms(
    training: Training, batch: Batch, config: ExperimentConfig
) -> tuple[dict[str, Float[Tensor, ""]], dict[str, Float[Tensor, ""]]]:
    """This worker's share of each loss term of a global batch, and of what is watched, see `waver.objective`."""
    device, weights = training.student.logit_scale.device, config.loss.weights
    retrieved = "informed" if config.informed_at_inference else "plain"
    needs_plain = retrieved == "plain" or weights["knowledge"] > 0 or weights["distill"] > 0
    batch = batch.to(device)
    with record_function(FORWARD), autocast(config, device):
        phrases = training.phrases[batch.phrase_ids]
        encoded = training.forward(batch, phrases, plain=needs_plain, informed=config.uses_fusion)
    with record_function(LOSS):
        return loss_terms(
            training.student,
            encoded,
            batch,
            training.phrases,
            weights=weights,
            temperature=config.loss.temperature,
            retrieved=retrieved,
        )


def train_epoch(training: Training, batches: Iterable[Batch], config: ExperimentConfig) -> Iterator[dict[str, float]]:
    """Runs one epoch, or what is left of it; yields the logs of each step, with throughput and the share of time spent
    waiting for data.
    """
    batches = iter(batches)
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        waited = time.perf_counter() - start
        logs = train_step(training, batch, config)
        seconds = time.perf_counter() - start
        speed = batch.num_pairs / seconds
        yield logs | {
            "clips_per_s": speed,
            "clips_per_s_per_worker": speed / parallel.world_size(),
            "data_wait_share": waited / seconds,
        }
    training.epoch += 1


def parameter_groups(student: Student, config: ExperimentConfig) -> list[dict]:
    """Backbone and new parameters, each with and without weight decay (biases, norms and the scale are not decayed).

    Raises:
        ValueError: where no parameter is trained.
    """
    in_backbone = {id(parameter) for parameter in student.backbone.parameters()}
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(
            "nothing can be learned: train.backbone_lr_scale = 0 freezes the backbone, and neither aggregator nor "
            "interaction has weights; raise the former or choose model.temporal = seqTransf or similarity.kind = wti"
        )
    groups = []
    for backbone, scale in ((True, config.train.backbone_lr_scale), (False, 1.0)):
        for decayed in (True, False):
            chosen = [p for p in trainable if (id(p) in in_backbone) == backbone and (p.ndim > 1) == decayed]
            decay = config.train.weight_decay if decayed else 0.0
            groups.append({"params": chosen, "lr": config.train.lr * scale, "weight_decay": decay})
    return groups


def autocast(config: ExperimentConfig, device: torch.device) -> torch.autocast | nullcontext:
    """The precision of the towers; similarity and loss are always computed in full precision."""
    bf16 = config.train.precision == "bf16" or (config.train.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
