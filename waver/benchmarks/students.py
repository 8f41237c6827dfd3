"""A student with random weights, its batches, and the step of the conventional baseline on the same weights."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from waver.benchmarks.context import Context
from waver.benchmarks.synthetic import (
    embed_captions,
    embed_clips,
    experiment,
    make_captions,
    make_clips,
    make_knowledge,
)
from waver.config import ExperimentConfig
from waver.data.batch import Batch
from waver.data.clip_store import ClipStore
from waver.data.embedded_clips import EmbeddedClips
from waver.knowledge.store import Knowledge
from waver.runs.train_loop import worker_batches
from waver.training.build import Training, build_tokenizer, build_training
from waver.training.step import make_batch, train_step

_NUM_PHRASES, _NUM_MATCHES, _NUM_STEPS = 1000, 30, 10_000


@dataclass(frozen=True)
class Setup:
    """A synthetic experiment, and a student to train on it."""

    config: ExperimentConfig
    captions: pa.Table
    clips: ClipStore
    knowledge: Knowledge
    training: Training

    def batches(self, store: ClipStore | EmbeddedClips, num_pairs: int, number: int) -> Iterator[Batch]:
        """Yields batches of neighbouring clips, again from the first clip after the last.

        Args:
            store: what the batches are read from.
            num_pairs: pairs in a batch.
            number: number of batches.
        """
        rows = np.arange(number * num_pairs) % len(self.captions)
        plan = np.split(rows, number)
        return worker_batches(plan, self.captions, store, self.config, self.knowledge)

    def stepper(self, batches: Iterator[Batch]) -> Callable[[], object]:
        """Returns a function that reads the next batch and takes a step of waver with it."""
        return lambda: train_step(self.training, next(batches), self.config)


def build_setup(
    context: Context,
    num_clips: int,
    *,
    captions_per_clip: int = 1,
    image_size: int | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    device: str = "cpu",
) -> Setup:
    """Makes captions, clips and knowledge, and builds the student with random weights.

    Args:
        context: sizes and folder.
        num_clips: number of clips.
        captions_per_clip: captions of each clip.
        image_size: size of the stored frames; by default that of the backbone.
        settings: section -> settings of the experiment that differ from those of WAVER.
        device: device of the student.
    """
    sizes = context.sizes
    base = {
        "model": {"backbone": sizes.backbone},
        "video": {"size": sizes.image_size, "max_frames": sizes.max_frames},
        "text": {"max_words": sizes.max_words},
    }
    for section, values in (settings or {}).items():
        base[section] = base.get(section, {}) | dict(values)
    config = experiment(context.folder, base)
    captions = make_captions(num_clips, captions_per_clip, max_words=sizes.max_words)
    size = image_size or sizes.image_size
    clips = make_clips(context.folder / "clips", num_clips, size=size, max_frames=sizes.max_frames)
    names = clips.ok_clip_ids()
    width = sizes.width
    knowledge = make_knowledge(
        context.folder / "knowledge", names, width, num_phrases=_NUM_PHRASES, num_matches=_NUM_MATCHES
    )
    training = build_training(
        config,
        num_steps=_NUM_STEPS,
        device=torch.device(device),
        phrases=knowledge.phrase_embeddings(),
        pretrained=False,
    )
    return Setup(config, captions, clips, knowledge, training)


def embed(setup: Setup, folder: Path, *, tokens: bool) -> EmbeddedClips:
    """Writes random embeddings of the frames and, with `tokens`, of the captions of a setup."""
    width, text = setup.training.student.backbone.width, setup.config.text
    frames_of, tokens_of = folder / "frames", folder / "tokens"
    frames = embed_clips(frames_of, setup.clips, width)
    if not tokens:
        return EmbeddedClips(setup.clips, frames)
    backbone = setup.config.model.backbone
    stored = embed_captions(tokens_of, setup.captions, backbone, width, max_words=text.max_words)
    return EmbeddedClips(setup.clips, frames, stored)


def conventional_step(conventional: Any, setup: Setup, num_pairs: int) -> Callable[[], float]:
    """Returns a function that takes a conventional step on the weights of a setup and returns the loss before it.

    Its batch is that of the first `num_pairs` captions, decoded, normalised and tokenised before.

    Args:
        conventional: module of the baseline.
        setup: the experiment and the student.
        num_pairs: pairs in the batch.
    """
    student, config = setup.training.student, setup.config
    model = conventional.Model(student, copy.deepcopy(student.backbone.clip).requires_grad_(False).eval())
    optimizer = torch.optim.AdamW(
        [
            {name: group[name] for name in ("params", "lr", "weight_decay")}
            for group in setup.training.optimizer.param_groups
        ],
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    batch = conventional_batch(conventional, setup, num_pairs)
    return lambda: conventional.train_step(model, optimizer, batch, config.train.clip_grad_norm)


def conventional_batch(conventional: Any, setup: Setup, num_pairs: int) -> tuple[torch.Tensor, ...]:
    """Returns the arguments of the conventional model for the first `num_pairs` captions."""
    config = setup.config
    rows = np.arange(num_pairs)
    captions = setup.captions.take(rows)
    clip_ids = captions["clip_id"].to_pylist()
    pixels = setup.clips.read(clip_ids)
    batch = make_batch(setup.captions, rows, pixels, config, num_pairs, setup.knowledge)
    frames = np.stack([conventional.normalise(clip) for clip in pixels[0]])
    tokenizer = build_tokenizer(config)
    words = tokenizer(captions["caption"].to_pylist(), max_words=config.text.max_words, prompt=config.text.prompt)
    names = [setup.knowledge.phrases[number] for number in batch.phrase_ids.flatten().tolist()]
    ids, _ = tokenizer(names, max_words=tokenizer.context_length, prompt=config.knowledge.prompt)
    phrases = ids.view(*batch.phrase_ids.shape, -1)
    return torch.from_numpy(frames), batch.frame_mask, *words, phrases
