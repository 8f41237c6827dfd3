"""Evaluates the validation split of a model's run to calibrate the scores of an index, see `waver.search.calibration`."""

import logging
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from waver.config import ExperimentConfig
from waver.evaluation.evaluate import EvaluationOptions
from waver.evaluation.gallery import build_gallery
from waver.evaluation.top_clips import TopClips
from waver.on_ray.stages.evaluate import duplicates_of_split, evaluate_checkpoint
from waver.on_ray.stages.start import open_evaluations
from waver.search.calibration import Calibration, Uncalibrated, calibrate, write_calibration
from waver.tools.errors import WaverError

logger = logging.getLogger(__name__)

_MAX_CLIPS = 1000
"""Best clips of a caption among which its own clip is looked for; its score is -inf if it is not there."""


def calibrate_index(checkpoint: Path, config: ExperimentConfig, index: Path) -> Calibration | Uncalibrated:
    """Chooses the score below which probably nothing fits a query, and stores it in the index.

    If the validation split cannot be evaluated, for example because its videos are gone, it stores the reason instead.

    Args:
        checkpoint: checkpoint of the model.
        config: its configuration; paths and resources may differ.
        index: folder of the index.
    """
    logger.info(f"calibrating the scores on the validation split of {config.name}")
    try:
        calibration = _calibrate(checkpoint, config, index)
    except WaverError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        calibration = Uncalibrated(f"the validation split of {config.name} cannot be evaluated: {' '.join(lines[:2])}")
    write_calibration(index, calibration)
    return calibration


def _calibrate(checkpoint: Path, config: ExperimentConfig, index: Path) -> Calibration | Uncalibrated:
    inputs = open_evaluations({checkpoint: config}, "validation", writes=[index], stage="index")[checkpoint]
    assert inputs.captions is not None, "an evaluation cannot start without captions"
    assert inputs.store is not None, "an evaluation cannot start without clip store"
    queries = build_gallery(inputs.captions, "validation")
    _, excused = duplicates_of_split(inputs.captions, inputs.store, queries, "validation")
    options = EvaluationOptions(top_k=min(len(queries.clip_ids), _MAX_CLIPS))
    evaluation, _ = evaluate_checkpoint(
        checkpoint, config, inputs.captions, inputs.store, split="validation", options=options
    )
    assert evaluation.top is not None, "requested with top_k"
    return calibrate(*_own_and_others(evaluation.top, queries.clip_of_text, excused), len(queries.clip_ids))


def _own_and_others(
    top: TopClips, clip_of_text: Int[Tensor, " texts"], excused: Int[Tensor, "pairs 2"] | None
) -> tuple[Float[Tensor, " texts"], Float[Tensor, " texts"]]:
    """Returns, for each caption, the score of its own clip and the best score of a wrong clip; -inf if there is none."""
    is_own = top.clips == clip_of_text[:, None]
    fits = is_own.clone()
    if excused is not None:
        for text, clip in excused.tolist():
            fits[text] |= top.clips[text] == clip
    own, others = (top.scores.masked_fill(left_out, -torch.inf).amax(dim=1) for left_out in (~is_own, fits))
    return own, others
