"""The start of a run from the weights of another run (`train.start_from`): finds them, checks them, and records them.

started_from.json, in the folder of the run, says which checkpoint it was.
"""

import logging
from pathlib import Path
from typing import Any

from waver.config import ExperimentConfig
from waver.knowledge.store import Knowledge
from waver.runs.checkpoint import CheckpointError, check_weights, checkpoint_config, checkpoint_knowledge
from waver.runs.folder import best_checkpoint, find_checkpoint
from waver.runs.origin import read_origin
from waver.tools.files import read_json, sha256_of, write_json
from waver.tools.object_store import display_path, exists, fetch

logger = logging.getLogger(__name__)

_FILE = "started_from.json"


def find_start(config: ExperimentConfig, knowledge: Knowledge | None = None) -> Path | None:
    """Returns the checkpoint from whose weights a run starts; None for pre-trained or random weights.

    Args:
        config: configuration of the run.
        knowledge: phrases of the clips that the run learns from; None for none.

    Raises:
        CheckpointError: if `train.start_from` is no checkpoint, or of another model; or if it learned from a leaky
            dictionary, and the run would not say so.
        KnowledgeError: if it learned from another dictionary than the run.
    """
    asked = config.train.start_from
    if asked is None:
        return None
    checkpoint = check_start(config)
    learned = checkpoint_knowledge(checkpoint)
    if learned and knowledge:
        knowledge.check_same_dictionary(checkpoint, learned)
    if learned and learned["leaky"] and not knowledge:
        raise CheckpointError(
            f"train.start_from = {display_path(asked)} learned from a leaky dictionary, and a run without knowledge would "
            "not say so in its results: start from another run, or use the same knowledge"
        )
    return checkpoint


def check_start(config: ExperimentConfig) -> Path:
    """Returns the checkpoint that `train.start_from` names, after a check by the names and sizes of its weights.

    Raises:
        CheckpointError: if it is no checkpoint, or of another model; the message begins with the setting.
    """
    asked = config.train.start_from
    assert asked is not None, "the run starts from a checkpoint"
    try:
        checkpoint = find_checkpoint(asked)
        checkpoint_config(checkpoint)
        check_weights(checkpoint, config)
    except CheckpointError as error:
        raise CheckpointError(f"train.start_from: {error}") from None
    return checkpoint


def record_start(folder: Path, checkpoint: Path) -> None:
    """Writes the checkpoint from which a run starts into its folder, and logs it."""
    run = checkpoint.parent
    is_run = exists(run / "metrics.jsonl") and exists(run / "config.yaml")
    metrics = best_checkpoint(run)[1] if is_run and best_checkpoint(run)[0] == checkpoint else {}
    origin = read_origin(checkpoint)
    content = {
        "checkpoint": display_path(checkpoint),
        "name": checkpoint_config(checkpoint).name,
        "config": checkpoint_config(checkpoint).digest(),
        "sha256": sha256_of(fetch(checkpoint / "model.safetensors")),
        "validation": metrics,
        "origin": origin.as_json() if origin else None,
    }
    write_json(folder / _FILE, content)
    logger.info(f"training starts from the weights of {display_path(checkpoint)}, with a new optimizer and schedule")
    for note in origin.notes if origin else ():
        logger.info(f"  {note}")


def read_start(folder: Path) -> dict[str, Any] | None:
    """Returns the checkpoint from which a run started: checkpoint, name and config of its run, sha256 of its weights, its
    validation metrics if it was the best of its run, and its origin; None for pre-trained or random weights."""
    path = folder / _FILE
    return read_json(path) if exists(path) else None
