"""Selects the captions that are trained on, and plans the global batches of an epoch."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from waver.config import ExperimentConfig
from waver.data.annotations.captions import SPLITS
from waver.data.clip_store import ClipStore
from waver.data.epochs import epoch_batches, num_batches
from waver.model.tokenizer import Tokens, Truncation
from waver.tools.errors import WaverError
from waver.tools.names import counted
from waver.tools.object_store import display_path
from waver.training.build import build_tokenizer


class SplitError(WaverError):
    """A split has no captions, or none of its clips has frames."""


class BatchSizeError(WaverError):
    """There are too few training clips for a batch, or for the workers that share it."""


def training_rows(captions: pa.Table, store: ClipStore) -> np.ndarray:
    """Returns the rows of the caption table in the train split whose clips have frames; captions of a clip are adjacent."""
    train = pc.equal(captions["split"], "train")
    decoded = pc.is_in(captions["clip_id"], value_set=pa.array(store.ok_clip_ids(), pa.string()))
    rows = np.flatnonzero(pc.and_(train, decoded).to_numpy())
    clip_ids = captions["clip_id"].take(rows).to_numpy()
    return rows[np.argsort(clip_ids, kind="stable")]


def describe_data(captions: pa.Table, rows: np.ndarray, store: ClipStore) -> dict[str, Any]:
    """Describes the data of a run: counts, and hashes by which a change is noticed.

    Args:
        captions: caption table.
        rows: rows that are trained on, see `training_rows`. Their order determines the batches of the run.
        store: clip store.

    Returns:
        num_train_clips, num_train_captions; digest, of the clips and captions that are trained on, in their order;
        validation, of the captions of validation and whether their clips have frames; videos, of the video files of all
        these clips, None if they are not known because an older version of waver decoded them.
    """
    columns = [captions.take(rows)[name].to_pylist() for name in ("clip_id", "caption")]
    chosen = captions.filter(pc.equal(captions["split"], "validation"))
    validation = [chosen[name].to_pylist() for name in ("clip_id", "caption")]
    ok = set(store.ok_clip_ids())
    files = dict(zip(store.ledger["clip_id"].to_pylist(), store.ledger["file_digest"].to_pylist(), strict=True))
    decoded = [files[clip] for clip in sorted({*columns[0], *validation[0]} & ok)]
    return {
        "num_train_clips": len(set(columns[0])),
        "num_train_captions": len(rows),
        "digest": _digest(columns),
        "validation": _digest([*validation, [clip in ok for clip in validation[0]]]),
        "videos": None if None in decoded else _digest(decoded),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def measure_truncations(
    config: ExperimentConfig, captions: pa.Table, splits: Sequence[str] = SPLITS
) -> dict[str, Truncation]:
    """Returns split -> how many of its captions are longer than the model reads, for splits that have captions."""
    texts = {split: captions["caption"].filter(pc.equal(captions["split"], split)).to_pylist() for split in splits}
    tokenizer = build_tokenizer(config)
    return {
        split: tokenizer.measure_truncation(
            tokenizer.encode(part, prompt=config.text.prompt), max_words=config.text.max_words
        )
        for split, part in texts.items()
        if part
    }


def count_shared_captions(config: ExperimentConfig, captions: pa.Table, rows: np.ndarray) -> int:
    """Returns how many captions stand on more than one clip.

    Captions are equal if they have the same tokens once they are cut: the model cannot tell them apart.

    Args:
        config: configuration of the experiment.
        captions: caption table.
        rows: rows of the captions that are trained on.
    """
    chosen, tokenizer = captions.take(rows), build_tokenizer(config)
    tokens = tokenizer.encode(chosen["caption"].to_pylist(), prompt=config.text.prompt)
    read = [tokenizer.cut(ids, max_words=config.text.max_words) for ids in tokens]
    clips_of: dict[Tokens, set[str]] = {}
    for ids, clip_id in zip(read, chosen["clip_id"].to_pylist(), strict=True):
        clips_of.setdefault(ids, set()).add(clip_id)
    return sum(len(clips_of[ids]) > 1 for ids in read)


def describe_shared_captions(config: ExperimentConfig, num_shared: int, num_captions: int) -> str:
    """Says how many captions stand on more than one clip, and what the loss makes of them; empty if there are none."""
    if not num_shared:
        return ""
    treated = (
        "the caption counts as wrong for the other clips, unless loss.shared_captions = ignored leaves these pairs out"
        if config.loss.shared_captions == "negative"
        else "these pairs are left out of the negatives (loss.shared_captions = ignored)"
    )
    return (
        f"{num_shared:,} of {num_captions:,} training captions stand on more than one clip; where such clips meet in a "
        f"batch, {treated}"
    )


def check_split(captions: pa.Table, store: ClipStore, split: str) -> None:
    """Checks that a split can be trained on or evaluated.

    Raises:
        SplitError: if it has no captions, or none of its clips has frames.
    """
    clips = pc.unique(captions["clip_id"].filter(pc.equal(captions["split"], split)))
    if len(clips) == 0:
        raise SplitError(f"the {split} split has no captions")
    if not pc.any(pc.is_in(clips, value_set=pa.array(store.ok_clip_ids(), pa.string()))).as_py():
        raise SplitError(
            f"none of the {len(clips)} clips of the {split} split has frames: see the ledger in {display_path(store.path)}"
        )


def captions_of_clips(captions: pa.Table, rows: np.ndarray) -> Int[np.ndarray, " clips"]:
    """Returns the number of captions of each clip among some rows of the caption table."""
    return np.unique(captions["clip_id"].take(rows).to_numpy(), return_counts=True)[1]


def pairs_per_epoch(config: ExperimentConfig, num_clips: int, num_captions: int) -> int:
    """Returns the number of pairs of a caption and a clip in an epoch.

    Args:
        config: configuration of the experiment.
        num_clips: number of training clips.
        num_captions: number of their captions.
    """
    visits = config.train.captions_per_clip
    return num_captions if visits is None else visits * num_clips


def batch_size_of(config: ExperimentConfig, num_captions: Int[np.ndarray, " clips"]) -> int:
    """Returns the largest number of pairs in a batch: `train.global_batch_size`, or less if there are too few clips for it.

    A batch never has a clip twice.

    Args:
        config: configuration of the experiment.
        num_captions: number of captions of each training clip.

    Raises:
        BatchSizeError: if a batch would have no two clips, or some worker would have none of them.
    """
    num_clips = len(num_captions)
    if num_clips < 2:
        raise BatchSizeError(
            f"there are too few training clips ({num_clips}): a clip is learned by its contrast with others in its batch, "
            "so training needs at least 2"
        )
    if config.resources.max_workers > num_clips:
        raise BatchSizeError(
            f"resources.workers = {config.resources.max_workers} is more than the {num_clips} training clips, so that some "
            f"workers would have none: set it to {num_clips} at most"
        )
    largest, smallest = _batch_sizes(config, num_captions)
    if smallest < max(2, config.resources.max_workers):
        raise BatchSizeError(
            f"a clip has {num_captions.max()} of the {num_captions.sum()} training captions. An epoch of all captions puts "
            f"them into different batches, and some of these would have only {counted(smallest, 'pair')}: set "
            f"train.captions_per_clip to a number, such as {int(np.median(num_captions))}"
        )
    return largest


def _batch_sizes(config: ExperimentConfig, num_captions: Int[np.ndarray, " clips"]) -> tuple[int, int]:
    """Returns bounds on the number of pairs in a batch: the largest and, where captions limit it, the smallest."""
    size, total = min(config.train.global_batch_size, len(num_captions)), int(num_captions.sum())
    number = num_batches(num_captions, config.train.global_batch_size)
    if config.train.captions_per_clip is not None or number * size == total:
        return size, size
    is_limited = number > -(-total // config.train.global_batch_size)
    return -(-total // number) if is_limited else size, total // number


def describe_lowered_batch(config: ExperimentConfig, num_captions: Int[np.ndarray, " clips"]) -> str:
    """Says that batches are smaller than configured, and why; empty if they are not.

    Args:
        config: configuration of the experiment.
        num_captions: number of captions of each training clip.
    """
    asked, num_clips = config.train.global_batch_size, len(num_captions)
    largest, _ = _batch_sizes(config, num_captions)
    if largest == asked:
        return ""
    if largest == num_clips:
        return (
            f"train.global_batch_size = {asked} is more than the {num_clips} training clips, and a batch has no clip twice: "
            f"it is lowered to {num_clips}"
        )
    return (
        f"an epoch of all {num_captions.sum():,} captions needs {num_captions.max()} batches, since a clip has so many "
        f"captions and a batch has no clip twice: train.global_batch_size = {asked} is lowered to {largest}. "
        "For larger batches, set train.captions_per_clip to a number"
    )


def plan_epoch(config: ExperimentConfig, captions: pa.Table, rows: np.ndarray, *, epoch: int) -> list[np.ndarray]:
    """Returns the rows of the caption table for each global batch of an epoch.

    Their size follows `batch_size_of`.

    Args:
        config: configuration of the experiment: seed, global batch size and captions per clip.
        captions: caption table.
        rows: rows that are trained on, see `training_rows`.
        epoch: number of the epoch, from 0.
    """
    _, clip_of_caption = np.unique(captions["clip_id"].take(rows).to_numpy(), return_inverse=True)
    batches = epoch_batches(
        clip_of_caption,
        epoch=epoch,
        seed=config.seed,
        global_batch_size=config.train.global_batch_size,
        captions_per_clip=config.train.captions_per_clip,
    )
    return [rows[batch] for batch in batches]
