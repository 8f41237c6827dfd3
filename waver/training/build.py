"""Builds the student, its optimizer and its learning-rate schedule from the configuration."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from waver.config import ExperimentConfig
from waver.knowledge.soft_targets import Spaces
from waver.knowledge.teacher import Teacher
from waver.model.backbone import Backbone
from waver.model.errors import BackboneError
from waver.model.interaction import INTERACTIONS
from waver.model.lora import adapter_parameters, add_adapters
from waver.model.pretrained.weights import load_backbone
from waver.model.random_streams import derive_seed, random_stream
from waver.model.student import Encoded, Student, StudentParts
from waver.model.tokenizer import Tokenizer, find_tokenizer
from waver.model.towers import TOWERS, freeze_towers, recompute_activations
from waver.training import parallel


@dataclass
class Training:
    """The state of a run: model, optimizer, schedule and counters."""

    student: Student
    forward: Callable[..., Encoded]
    """The student, wrapped in DDP if there are several workers."""
    phrases: Float[Tensor, "P D"]
    """The teacher's embeddings of all P phrases, a table without gradient; P = 0 without knowledge."""
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    num_steps: int
    """Optimizer steps of the whole run."""
    spaces: Spaces | None = None
    """The phrases in the spaces of teacher and student; None if no term of the loss reads them."""
    epoch: int = 0
    """Epochs completed."""
    step: int = 0
    """Optimizer steps taken."""
    rows: int = 0
    """Number of captions trained on, repetitions included."""


def local_device(config: ExperimentConfig) -> torch.device:
    """Returns the device of this process: a GPU if it sees one, unless resources.gpus_per_worker is 0."""
    return torch.device("cuda" if torch.cuda.is_available() and config.resources.gpus_per_worker != 0 else "cpu")


def build_tokenizer(config: ExperimentConfig) -> Tokenizer:
    """Returns the tokenizer of the backbone of an experiment.

    Raises:
        BackboneError: see `find_tokenizer`.
    """
    return find_tokenizer(config.model.backbone, config.model.weights)


def empty_text(config: ExperimentConfig) -> tuple[Int[Tensor, "1 T"], Bool[Tensor, "1 N"]]:
    """Returns token ids and mask of the shape that one caption has, on the default device, for estimates."""
    ids, mask = build_tokenizer(config).pad([()], max_words=config.text.max_words)
    return torch.zeros(ids.shape, dtype=ids.dtype), torch.ones(mask.shape, dtype=mask.dtype)


def build_backbone(config: ExperimentConfig, weights: str | None) -> Backbone:
    """Builds the backbone of an experiment, with its preprocessing; the seed determines its random weights.

    Args:
        config: configuration of the experiment.
        weights: its weights, see `load_backbone`; None for random ones.

    Raises:
        BackboneError: see `load_backbone`.
    """
    frames = config.preprocessing
    with random_stream(config.seed):
        return load_backbone(config.model.backbone, weights, image_size=frames.size, mean=frames.mean, std=frames.std)


def build_teacher(config: ExperimentConfig) -> Teacher:
    """Builds the frozen teacher: the backbone with its pre-trained weights, on a GPU if this process sees one."""
    backbone = build_backbone(config, config.model.weights)
    return Teacher(backbone.to(local_device(config)), build_tokenizer(config), config.knowledge.prompt)


def build_student(config: ExperimentConfig, weights: str | None = None) -> Student:
    """Builds the model of an experiment; the seed determines its random weights.

    Args:
        config: configuration of the experiment.
        weights: weights of the backbone, see `load_backbone`; None if a checkpoint is loaded afterwards.

    Raises:
        BackboneError: if the backbone cannot be built, or captions or clips of the configured length do not fit into it.
    """
    backbone = build_backbone(config, weights)
    num_positions = backbone.num_positions
    needed = config.video.max_frames + INTERACTIONS[config.similarity.kind].num_extra_positions
    if max(needed, config.text.max_words) > num_positions:
        raise BackboneError(
            f"model.backbone has {num_positions} positions: text.max_words = {config.text.max_words} and "
            f"video.max_frames = {config.video.max_frames} must fit into them"
        )
    tokenizer = build_tokenizer(config)
    if tokenizer.vocabulary_size > backbone.vocabulary_size:
        raise BackboneError(
            f"model.backbone has a vocabulary of {backbone.vocabulary_size} tokens, its tokenizer of "
            f"{tokenizer.vocabulary_size}"
        )
    if not (backbone.embeds_tokens or INTERACTIONS[config.similarity.kind].compares_sentence):
        kinds = [name for name, interaction in INTERACTIONS.items() if interaction.compares_sentence]
        raise BackboneError(
            f"similarity.kind = {config.similarity.kind} compares each word with each frame, but the text tower of "
            f"model.backbone gives one embedding for a whole text: set similarity.kind to {' or '.join(kinds)}"
        )
    student = Student(backbone, student_parts(config), seed=config.seed)
    if lora := config.model.lora:  # last: the aggregator copies weights of the text tower
        with random_stream(derive_seed(config.seed, "adapters")):
            add_adapters(
                student.backbone,
                TOWERS if lora.where == "both" else (lora.where,),
                rank=lora.rank,
                alpha=lora.alpha,
            )
    return student


def student_parts(config: ExperimentConfig) -> StudentParts:
    """Returns what the student of an experiment has beside its backbone."""
    return StudentParts(
        temporal=config.model.temporal,
        temporal_layers=config.model.temporal_layers,
        similarity=config.similarity.kind,
        wti_layers=config.similarity.wti_layers,
        frame_norm=config.model.frame_norm,
        fusion=config.fusion_kind,
        dropout=config.knowledge.dropout,
        initialisation=config.model.initialisation,
        sigmoid=config.loss.kind == "sigmoid",
    )


def freeze_student(student: Student, config: ExperimentConfig) -> None:
    """Freezes the parameters that a configuration does not train; those of adapters are always trained.

    Raises:
        BackboneError: if train.freeze names blocks that a tower does not have.
    """
    if config.train.backbone_lr_scale == 0:
        student.backbone.requires_grad_(False)
    freeze_towers(student.backbone, config.train.freeze)
    for parameter in adapter_parameters(student.backbone):
        parameter.requires_grad_(True)


def build_training(
    config: ExperimentConfig,
    *,
    num_steps: int,
    device: torch.device,
    phrases: Float[Tensor, "P D"] | None = None,
    pretrained: bool = True,
) -> Training:
    """Builds model, optimizer (AdamW) and schedule at the start of a run.

    Args:
        config: configuration of the experiment.
        num_steps: optimizer steps of the whole run.
        device: device of the model.
        phrases: the teacher's embeddings of all phrases; None without knowledge.
        pretrained: whether to load model.weights; not needed if a checkpoint is loaded afterwards that holds the towers.

    Raises:
        BackboneError: as `build_student` and `freeze_student`; if the phrases have another width, no parameter would be
            trained, or a tower has no gradient checkpointing.
    """
    torch.manual_seed(config.seed)  # of what training draws: the patches that a tower with patch_dropout leaves out
    student = build_student(config, config.model.weights if pretrained or config.model.lora else None).to(device)
    freeze_student(student, config)
    if config.train.grad_checkpointing:
        recompute_activations(student.backbone)
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
        raise BackboneError(
            f"the teacher's phrases have width {phrases.shape[1]}, model.backbone {student.backbone.width}: run "
            "`waver match CONFIG` again"
        )
    return Training(student, forward, phrases.to(device), optimizer, schedule, num_steps)


def warmup_cosine(step: int, *, num_steps: int, warmup: float) -> float:
    """Returns the factor on the learning rate: a linear warmup to 1, then half a cosine down to 0.

    Args:
        step: optimizer step, from 0.
        num_steps: optimizer steps of the whole run.
        warmup: fraction of the steps in which the factor rises.
    """
    num_warmup = warmup * num_steps
    if step < num_warmup:
        return linear_warmup(step, num_steps=num_steps, warmup=warmup)
    return 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / max(1, num_steps - num_warmup)))


def linear_warmup(step: int, *, num_steps: int, warmup: float) -> float:
    """Returns a factor that rises linearly from above 0 to 1, and stays there.

    Args:
        step: optimizer step, from 0.
        num_steps: optimizer steps of the whole run.
        warmup: fraction of the steps in which the factor rises; 0 for 1 from the start.
    """
    num_warmup = warmup * num_steps
    return min(1.0, (step + 1) / num_warmup) if num_warmup else 1.0


def parameter_groups(student: Student, config: ExperimentConfig) -> list[dict[str, Any]]:
    """Groups the trained parameters: backbone and new ones, each with and without weight decay.

    Biases, layer norms, the logit scale and bias are not decayed. Adapters of LoRA are new.

    Raises:
        BackboneError: if no parameter is trained, or logit scale and bias alone, on which no ranking depends.
    """
    new = {id(parameter) for parameter in adapter_parameters(student)}
    in_backbone = {id(parameter) for parameter in student.backbone.parameters()} - new
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    if all(parameter is student.logit_scale or parameter is student.logit_bias for parameter in trainable):
        raise BackboneError(
            "nothing can be learned: train.backbone_lr_scale = 0 or train.freeze freezes the backbone, and neither "
            "aggregator nor interaction has weights. Raise train.backbone_lr_scale, freeze less, or choose "
            "model.temporal = seqTransf or similarity.kind = wti"
        )
    groups: list[dict[str, Any]] = []
    for backbone, scale in ((True, config.train.backbone_lr_scale), (False, 1.0)):
        for decayed in (True, False):
            chosen = [p for p in trainable if (id(p) in in_backbone) == backbone and (p.ndim > 1) == decayed]
            decay = config.train.weight_decay if decayed else 0.0
            groups.append({"params": chosen, "lr": config.train.lr * scale, "weight_decay": decay})
    return groups
