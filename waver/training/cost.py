"""Estimates the floating-point operations of a training run, its evaluations included, before anything runs.

Towers whose embeddings a run reads from a store cost one pass over each frame and caption, in all runs together.

A multiplication and an addition are two operations, as in the figures of GPU vendors. Only matrix products, convolutions and
attention count: all else is far less.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch.utils.flop_counter import FlopCounterMode

from waver.config import ExperimentConfig
from waver.data.annotations.captions import count_split
from waver.model.embeddings import Embeddings
from waver.model.pretrained.weights import load_backbone
from waver.model.temporal import LstmAggregator
from waver.model.towers import Tower, tower_blocks
from waver.tools.errors import WaverError
from waver.training.build import build_student, empty_text
from waver.training.objective import needs_plain
from waver.training.plan import pairs_per_epoch

SUSTAINED_TFLOPS = 40.0
"""Speed at which GPU-hours are estimated, TFLOP/s: assumed, not measured, for an A100 in bf16, whose peak is 312."""
MINUTE_H = 1 / 60
"""A minute in hours."""
_BACKWARD = 3
"""Operations of forward and backward together, relative to forward: the gradients of inputs and of weights cost one each."""
_RECOMPUTED = 2 / 3
"""Operations of a second forward pass for gradient checkpointing: the last linear layer of a transformer's block, a third of
it, is left out, since nothing in the block needs its output."""
_UNITS = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"))


class CostError(WaverError):
    """The cost cannot be estimated: a part of the student does not run on torch's meta device."""


@dataclass(frozen=True)
class ForwardFlops:
    """Floating-point operations of one forward pass through each part of a student."""

    frame: int
    """Vision tower, one frame."""
    caption: int
    """Text tower, one caption of text.max_words tokens, and the weights of its tokens."""
    words: int
    """The weights of its tokens alone."""
    clip: int
    """Temporal aggregator, one clip of video.max_frames frames, and the weights of its frames."""
    fusion: int
    """Fusion of one clip with its phrases; 0 without fusion."""
    comparison: int
    """Similarity of one caption with one clip."""
    vision_blocks: int
    """Number of blocks of the vision tower; 0 if unknown."""
    text_blocks: int
    """The same of the text tower."""


@dataclass(frozen=True)
class TrainingCost:
    """Floating-point operations of a run; at most so many, since clips may have fewer frames."""

    num_pairs: int
    """Pairs of a caption and a clip in all epochs together."""
    training_flops: int
    evaluation_flops: int
    """Of the validations after all epochs."""
    embedding_flops: int = 0
    """Of frozen towers that embed frames and captions once, for all runs that read the same stores."""

    @property
    def flops(self) -> int:
        """Operations of the whole run, if nothing is embedded yet."""
        return self.training_flops + self.evaluation_flops + self.embedding_flops

    @property
    def gpu_hours(self) -> float:
        """Hours of one GPU at `SUSTAINED_TFLOPS`, without its waits."""
        return _gpu_hours(self.flops)

    @property
    def embedding_hours(self) -> float:
        """The part of `gpu_hours` for the embeddings."""
        return _gpu_hours(self.embedding_flops)

    def describe(self) -> str:
        """Returns operations and GPU-hours of the run in words, with the assumed speed."""
        embedded = (
            f", {format_hours(self.embedding_hours)} of it for embeddings that other runs share"
            if self.embedding_flops
            else ""
        )
        return (
            f"{_format_flops(self.flops)} for {self.num_pairs:,} pairs of a caption and a clip and the validations, "
            f"{format_hours(self.gpu_hours)} at {SUSTAINED_TFLOPS:g} TFLOP/s (assumed of an A100 in bf16){embedded}"
        )


def _gpu_hours(flops: int) -> float:
    return flops / (SUSTAINED_TFLOPS * 1e12) / 3600


def _format_flops(flops: int) -> str:
    scale, unit = next(((s, u) for s, u in _UNITS if flops >= s), _UNITS[-1])
    return f"{flops / scale:.3g} {unit}"


def format_hours(gpu_hours: float) -> str:
    """Formats GPU-hours; a short time in GPU-minutes."""
    if gpu_hours < MINUTE_H:
        return "less than a GPU-minute"
    return (
        f"{60 * gpu_hours:.0f} GPU-minutes"
        if gpu_hours < 1
        else f"{gpu_hours:.{0 if gpu_hours >= 10 else 1}f} GPU-hours"
    )


def training_cost(config: ExperimentConfig, captions: pa.Table, forward: ForwardFlops | None = None) -> TrainingCost:
    """Estimates the cost of a run, see the module's docstring.

    Args:
        config: configuration of the experiment.
        captions: its caption table; clips that could not be decoded count as well.
        forward: `count_forward` of the configuration, if it is known.

    Raises:
        BackboneError: if the student cannot be built.
        CostError: if a part of it does not run on torch's meta device.
    """
    forward = forward or count_forward(config)
    train, max_frames = config.train, config.video.max_frames
    num_train, num_texts = count_split(captions, "train")
    num_clips, num_captions = count_split(captions, "validation")
    embedded = _embedded_towers(config, num_train, num_texts)
    frame = 0 if "vision" in embedded else forward.frame
    tower = 0 if "text" in embedded else forward.caption - forward.words
    retrieved = "informed" if config.informed_at_inference else "plain"
    ways = int(needs_plain(config.loss.weights, retrieved)) + int(config.uses_fusion)
    # With several workers, each computes its captions with all clips, and for a softmax its clips with all captions.
    both_ways = config.resources.max_workers > 1 and (config.loss.kind == "softmax" or config.loss.distill > 0)
    compared = min(train.global_batch_size, num_train) * (2 if both_ways else 1)
    again = int(_embeds_twice(config, num_train))
    towers = (tower + forward.words) * (again + _tower_passes(config, "text", forward.text_blocks))
    towers += max_frames * frame * (again + _tower_passes(config, "vision", forward.vision_blocks))
    embedding = ways * forward.clip + forward.fusion
    heads = (_BACKWARD + again) * embedding + _BACKWARD * ways * compared * forward.comparison
    num_pairs = train.epochs * pairs_per_epoch(config, num_train, num_texts)
    clip = max_frames * frame + forward.clip + (forward.fusion if config.informed_at_inference else 0)
    validation = num_clips * clip + num_captions * (tower + forward.words + num_clips * forward.comparison)
    return TrainingCost(
        num_pairs,
        round(num_pairs * (towers + heads)),
        train.epochs * validation,
        (num_train + num_clips) * max_frames * (forward.frame - frame)
        + (num_texts + num_captions) * (forward.caption - forward.words - tower),
    )


def _embedded_towers(config: ExperimentConfig, num_clips: int, num_captions: int) -> tuple[Tower, ...]:
    """Returns the frozen towers whose embeddings a run reads, see `waver.runs.embeddings.training_needs`.

    Args:
        config: configuration of the experiment.
        num_clips: number of training clips.
        num_captions: number of their captions.
    """
    settings, visits = config.embeddings, config.train.epochs * pairs_per_epoch(config, num_clips, num_captions)
    if settings.use == "never":
        return ()
    reads_tokens = settings.captions is True or (settings.captions == "auto" and visits > num_captions)
    return tuple(tower for tower in config.frozen_towers if tower == "vision" or reads_tokens)


def _embeds_twice(config: ExperimentConfig, num_train: int) -> bool:
    """Returns whether train.micro_batch_size splits the share of a worker, so that each pair is embedded twice."""
    size = config.train.micro_batch_size
    share = -(-min(config.train.global_batch_size, num_train) // config.resources.max_workers)
    return size is not None and share > size


def _tower_passes(config: ExperimentConfig, tower: Tower, num_blocks: int) -> float:
    """Returns the operations of a tower in a step, relative to one forward pass without gradient.

    With adapters it is an upper bound: weights that are frozen need no gradient, those that adapters add to do.
    """
    train, lora = config.train, config.model.lora
    frozen = [part.partition(".")[2] for part in train.freeze if part.partition(".")[0] == tower]
    if lora:
        trained = float(lora.where in (tower, "both"))
    elif train.backbone_lr_scale == 0 or "" in frozen:
        trained = 0.0
    else:  # the first blocks neither keep activations nor have a gradient
        trained = 1 - int(frozen[0]) / max(1, num_blocks) if frozen else 1.0
    return 1 + trained * (_BACKWARD - 1 + (_RECOMPUTED if train.grad_checkpointing else 0))


def count_forward(config: ExperimentConfig) -> ForwardFlops:
    """Counts the operations of each part of an experiment's student, on torch's meta device, which computes nothing.

    Raises:
        BackboneError: if the student cannot be built.
        CostError: if a part of it does not run on the meta device.
    """
    video, num_words = config.video, config.text.max_words
    num_tokens = empty_text(config)[0].shape[1]
    with torch.device("meta"), torch.no_grad():
        student = build_student(config)
        width = student.backbone.width
        frames, words = torch.empty(1, video.max_frames, width), torch.empty(1, num_words, width)
        frame_mask, word_mask = (torch.ones(values.shape[:2], dtype=torch.bool) for values in (frames, words))
        text = Embeddings(words, word_mask, torch.empty(1, num_words))
        clip = Embeddings(frames, frame_mask, torch.empty(1, video.max_frames))
        phrases = torch.empty(1, max(1, config.knowledge.top_k), width)
        # Clips of different lengths, which seqLSTM packs, are unknown on the meta device.
        temporal = student.temporal.lstm if isinstance(student.temporal, LstmAggregator) else student.temporal
        of_clip = (frames,) if isinstance(student.temporal, LstmAggregator) else (frames, frame_mask)
        frame, caption = _count_towers(
            json.dumps(config.model.backbone), config.preprocessing.size, num_tokens, num_words
        )
        of_words = _count_flops(student.text_weights, words)
        return ForwardFlops(
            frame=frame,
            caption=caption + of_words,
            words=of_words,
            clip=_count_flops(temporal, *of_clip) + _count_flops(student.video_weights, frames),
            fusion=_count_flops(student.fusion, frames, phrases),
            comparison=_count_flops(student.similarity, text, clip),
            vision_blocks=len(tower_blocks(student.backbone, "vision")),
            text_blocks=len(tower_blocks(student.backbone, "text")),
        )


@functools.lru_cache
def _count_towers(backbone: str, size: int, num_tokens: int, num_words: int) -> tuple[int, int]:
    """Returns the operations for one frame and for one caption; the trials of a sweep mostly have the same towers.

    Args:
        backbone: model.backbone as JSON.
        size: height and width of frames, pixels.
        num_tokens: length of the token ids.
        num_words: length of their mask.
    """
    with torch.device("meta"), torch.no_grad():
        model = load_backbone(json.loads(backbone), None, image_size=size)
        pixels, tokens = torch.empty(1, 3, size, size), torch.zeros(1, num_tokens, dtype=torch.int64)
        mask = torch.ones(1, num_words, dtype=torch.bool)
        return _count_flops(model.clip.encode_image, pixels), _count_flops(model.encode_tokens, tokens, mask)


def _count_flops(part: Callable[..., Any] | None, *inputs: Any) -> int:
    """Returns the operations of one call; 0 for a part that the student lacks."""
    if part is None:
        return 0
    with FlopCounterMode(display=False) as counter:
        try:
            part(*inputs)
        except (RuntimeError, NotImplementedError) as error:  # an operation that the meta device lacks
            raise CostError(f"the cost of training is not estimated: {str(error).splitlines()[0]}") from error
    return counter.get_total_flops()
