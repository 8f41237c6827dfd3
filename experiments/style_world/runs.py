"""Trains and tests one run of the experiment, with the functions that waver's training workers call."""

import time
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from waver.config import ExperimentConfig
from waver.data.embedded_clips import EmbeddingPaths
from waver.evaluation.evaluate import EvaluationOptions, evaluate
from waver.runs.inputs import load_captions, open_knowledge, open_store
from waver.runs.soft_targets import FrozenPaths, build_spaces, open_teacher
from waver.runs.train_loop import worker_batches
from waver.training.build import Training, build_training
from waver.training.plan import plan_epoch, training_rows
from waver.training.step import train_epoch

TESTED_EPOCHS = (0, 1, 2, 4, 8)
"""Epochs after which a run is tested, for its learning curve; 0 for the start."""


@dataclass(frozen=True)
class Job:
    """A run: its configuration, and what no setting of waver says."""

    config: ExperimentConfig
    frames: Path
    """Embedding store of the frames of all clips."""
    captions: Path
    """Embedding store of all captions, by the pre-trained backbone."""
    decay_to_start: float = 0.0
    """Weight decay towards the pre-trained weights in place of zero (L2-SP, Li et al., arXiv 1802.01483), as a factor of the
    learning rate."""
    only_validation: bool = False
    """Whether to leave test out, as in tuning."""
    averages: tuple[float, ...] = ()
    """Shares of the fine-tuned weights in averages with the pre-trained ones that are tested too (WiSE-FT, Wortsman et al.,
    arXiv 2109.01903)."""


def run(job: Job) -> dict[str, Any]:
    """Trains a run and tests it.

    Returns:
        Name of a checkpoint (`epoch 2`, `average 0.5`) -> `validation`, R@1 in percent with captions of seen writers;
        `ranks` and `answers`, the rank of the right clip and the first clip for each caption of test, in the order of
        `test_queries`; `seconds`, the time of training so far.
    """
    torch.set_num_threads(1)
    config = job.config
    captions = load_captions(config)
    store = open_store(config, captions)
    knowledge = open_knowledge(config, captions, store, ("train",)) if config.uses_knowledge else None
    rows = training_rows(captions, store)
    plans = [plan_epoch(config, captions, rows, epoch=epoch) for epoch in range(config.train.epochs)]
    training = build_training(
        config,
        num_steps=sum(map(len, plans)),
        device=torch.device("cpu"),
        phrases=knowledge.phrase_embeddings() if knowledge else None,
    )
    clips = EmbeddingPaths(job.frames).open(store)
    frozen = FrozenPaths(EmbeddingPaths(job.frames, job.captions))
    teacher = open_teacher(config, frozen, store) if config.uses_teacher else None
    if config.uses_soft_targets:
        training.spaces = build_spaces(config, captions, rows, knowledge, frozen, store)
    start = deepcopy(training.student.state_dict())
    batches = worker_batches([batch for plan in plans for batch in plan], captions, clips, config, knowledge, teacher)

    seconds = 0.0

    def tested() -> dict[str, Any]:
        asked = {"knowledge": knowledge, "options": EvaluationOptions(top_k=1)}
        validation = evaluate(training.student, captions, clips, config, split="validation", **asked)
        found = {"validation": validation.metrics["t2v/R@1"], "seconds": seconds}
        if job.only_validation:
            return found
        test = evaluate(training.student, captions, clips, config, split="test", **asked)
        ranks, answers = test.ranks.t2v.numpy(), test.top.clips[:, 0].numpy()
        return found | {"ranks": ranks.astype(np.float32), "answers": answers.astype(np.int16)}

    found = {"epoch 0": tested()}
    for epoch, plan in enumerate(plans, 1):
        began = time.perf_counter()
        for _ in train_epoch(training, islice(batches, len(plan)), config):
            _decay(training, start, job.decay_to_start)
        seconds += time.perf_counter() - began
        if epoch in TESTED_EPOCHS or epoch == len(plans):
            found[f"epoch {epoch}"] = tested()
    end = deepcopy(training.student.state_dict())
    for share in job.averages:
        average = {
            name: torch.lerp(start[name], end[name], share) if end[name].is_floating_point() else end[name]
            for name in end
        }
        training.student.load_state_dict(average)
        found[f"average {share:g}"] = tested()
    return found


def test_queries(captions: pa.Table) -> pa.Table:
    """Returns the captions of test in the order of the ranks of an evaluation."""
    queries = captions.filter(pc.equal(captions["split"], "test"))
    return queries.sort_by([("clip_id", "ascending"), ("caption_index", "ascending")])


def _decay(training: Training, start: dict[str, torch.Tensor], decay: float) -> None:
    """Moves the weights of the backbone towards where they started."""
    if not decay:
        return
    rate = decay * training.optimizer.param_groups[0]["lr"]
    with torch.no_grad():
        for name, parameter in training.student.named_parameters():
            if parameter.requires_grad and name.startswith("backbone."):
                parameter.lerp_(start[name], rate)
