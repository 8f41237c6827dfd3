"""Makes and finds the embedding stores of an experiment, with the embeddings of frames and captions by its frozen towers.

A stage says which clips and captions it is going to read (`Needs`). `embed_missing` embeds those that are not stored yet,
and returns the folders of the stores to read.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from waver.config import ExperimentConfig
from waver.data.clip_store import ClipStore
from waver.data.embedded_clips import EmbeddedClips, EmbeddingPaths
from waver.data.embedding_store import (
    EmbeddingError,
    EmbeddingSettings,
    EmbeddingStore,
    check_settings,
    create_embeddings,
    mark_complete,
    write_items,
)
from waver.model.backbone import Backbone
from waver.model.frozen import embed_frames, embed_texts, tower_digest
from waver.runs.checkpoint import load_student
from waver.runs.origin import read_origin
from waver.tools.lock import hold_lock
from waver.tools.object_store import display_path, exists
from waver.tools.progress import track_progress
from waver.training.build import build_backbone, build_tokenizer, local_device
from waver.training.plan import pairs_per_epoch

logger = logging.getLogger(__name__)

_CLIPS_PER_BLOCK, _CAPTIONS_PER_BLOCK = 64, 1024

RunBlocks = Callable[[Callable[..., Callable[[pa.Table], int]], tuple, Sequence[pa.Table]], Iterator[int]]
"""Processes blocks: (worker, its arguments, blocks) -> the number of items of each block, in any order. The worker returns
the function that processes a block. See `run_in_process` and `waver.on_ray.cluster.blocks.map_blocks`."""


@dataclass(frozen=True)
class Needs:
    """What a stage reads from embedding stores."""

    clip_ids: Sequence[str] | None = None
    """Clips whose frames are read as embeddings; None to read pixels."""
    captions: Sequence[str] | None = None
    """Captions whose tokens are read as embeddings; None to read words."""
    makes_captions: bool = False
    """Whether missing captions are embedded. If not, and one is missing, the stage reads words."""


def training_needs(config: ExperimentConfig, captions: pa.Table, clips: ClipStore, rows: np.ndarray) -> Needs:
    """Returns what training and its validation read.

    Args:
        config: configuration of the experiment.
        captions: its caption table.
        clips: its clip store.
        rows: rows of the caption table that are trained on.
    """
    validation = captions.filter(pc.equal(captions["split"], "validation"))
    train = captions.take(rows)
    num_clips = len(pc.unique(train["clip_id"]))
    visits = config.train.epochs * pairs_per_epoch(config, num_clips, len(train))
    return _needs(
        config, clips, pa.concat_tables([train, validation]), config.frozen_towers, rereads=visits > len(train)
    )


def evaluation_needs(
    config: ExperimentConfig, captions: pa.Table, clips: ClipStore, split: str, *, checkpoint: Path
) -> Needs:
    """Returns what the evaluation of a split reads.

    Args:
        config: configuration of the experiment.
        captions: its caption table.
        clips: its clip store.
        split: train, validation or test.
        checkpoint: folder of the model.
    """
    origin = read_origin(checkpoint)
    towers = config.frozen_towers if origin is None else ("vision", "text") if origin.kind == "zero-shot" else ()
    return _needs(config, clips, captions.filter(pc.equal(captions["split"], split)), towers, rereads=False)


def all_needs(config: ExperimentConfig, captions: pa.Table, clips: ClipStore) -> Needs:
    """Returns what `waver embed` stores: all clips of an experiment and, as `embeddings.captions` says, its captions."""
    clip_ids, wanted = _decoded(captions, clips), config.embeddings.captions
    makes = wanted is True or (wanted == "auto" and "text" in config.frozen_towers)
    return Needs(clip_ids, pc.unique(captions["caption"]).to_pylist() if makes else None, makes)


def _needs(
    config: ExperimentConfig, clips: ClipStore, read: pa.Table, towers: Sequence[str], *, rereads: bool
) -> Needs:
    settings = config.embeddings
    if settings.use == "never":
        return Needs()
    reads_tokens = "text" in towers and settings.captions is not False
    return Needs(
        _decoded(read, clips) if "vision" in towers else None,
        pc.unique(read["caption"]).to_pylist() if reads_tokens else None,
        settings.captions is True or rereads,
    )


def _decoded(captions: pa.Table, clips: ClipStore) -> list[str]:
    asked = set(captions["clip_id"].to_pylist())
    return [clip_id for clip_id in clips.ok_clip_ids() if clip_id in asked]


def run_in_process(
    worker: Callable[..., Callable[[pa.Table], int]], arguments: tuple, blocks: Sequence[pa.Table]
) -> Iterator[int]:
    """Processes blocks in this process, in their order; see `RunBlocks`."""
    process = worker(*arguments)
    for block in blocks:
        yield process(block)


def embed_missing(
    config: ExperimentConfig,
    clips: ClipStore,
    needs: Needs,
    *,
    checkpoint: Path | None = None,
    run: RunBlocks = run_in_process,
    progress: bool = True,
) -> EmbeddingPaths:
    """Embeds what a stage needs and is not stored yet. Holds the lock of each store while it writes it.

    Args:
        config: configuration of the experiment.
        clips: its clip store.
        needs: what the stage reads.
        checkpoint: checkpoint with the frozen towers; None to load them from `model.weights`.
        run: processes the blocks of items, by default in this process.
        progress: whether to show progress on standard error.

    Returns:
        The folders of the stores that the stage reads.

    Raises:
        EmbeddingError: if a store was made from something else, or an embedding is NaN or infinite.
        LockedError: if another process writes a store.
    """
    frames, tokens = _frame_work(config, clips, needs, checkpoint), _token_work(config, needs, checkpoint)
    if frames:
        _fill(frames, run, progress=progress)
    if tokens and needs.makes_captions:
        _fill(tokens, run, progress=progress)
    elif tokens and tokens.missing():
        tokens = None
    for work in (frames, tokens):
        if work:
            place = display_path(work.folder)
            logger.info(f"embeddings of {work.unit} are read from {place}: their tower is frozen and does not run")
    return EmbeddingPaths(frames and frames.folder, tokens and tokens.folder)


def is_embedded(config: ExperimentConfig, clips: ClipStore, needs: Needs) -> bool:
    """Returns whether `embed_missing` would have nothing to embed.

    Raises:
        EmbeddingError: if a store is damaged.
    """
    frames, tokens = _frame_work(config, clips, needs, None), _token_work(config, needs, None)
    return not (frames and frames.missing()) and not (tokens and needs.makes_captions and tokens.missing())


def _frame_work(config: ExperimentConfig, clips: ClipStore, needs: Needs, checkpoint: Path | None) -> "_Work | None":
    if needs.clip_ids is None:
        return None
    folder = config.frame_embeddings
    arguments = (config, folder, clips.path, checkpoint)
    return _Work(folder, "clips", clips.blocks_of(needs.clip_ids), _CLIPS_PER_BLOCK, _FrameEmbedder, arguments)


def _token_work(config: ExperimentConfig, needs: Needs, checkpoint: Path | None) -> "_Work | None":
    if needs.captions is None:
        return None
    folder, sources = config.token_embeddings, dict.fromkeys(needs.captions, "")
    arguments = (config, folder, checkpoint)
    return _Work(folder, "captions", sources, _CAPTIONS_PER_BLOCK, _TokenEmbedder, arguments)


@dataclass(frozen=True)
class _Work:
    """The items that a store should have, and the worker that embeds them."""

    folder: Path
    unit: str
    sources: Mapping[str, str]
    """Item -> the source that it is computed from."""
    block_size: int
    worker: Callable[..., Callable[[pa.Table], int]]
    arguments: tuple

    def missing(self) -> list[str]:
        """Returns the items that the store lacks."""
        if not exists(self.folder / "manifest.json"):
            return list(self.sources)
        return EmbeddingStore(self.folder).missing(self.sources)


def _fill(work: _Work, run: RunBlocks, *, progress: bool) -> None:
    """Embeds the items that a store lacks."""
    if not work.missing():
        return
    with hold_lock(work.folder, "embedding"):
        todo = work.missing()
        logger.info(
            f"embedding {len(todo)} of {len(work.sources)} {work.unit} once, for all runs with this backbone, in "
            f"{display_path(work.folder)}"
        )
        starts = range(0, len(todo), work.block_size)
        blocks = [pa.table({"id": todo[first : first + work.block_size]}) for first in starts]
        with closing(run(work.worker, work.arguments, blocks)) as done:
            shown = {"doing": "embedding", "unit": work.unit, "total": len(todo), "enabled": progress}
            for _ in track_progress(done, size=int, **shown):
                pass
        mark_complete(work.folder)


def check_embeddings(config: ExperimentConfig, backbone: Backbone, clips: ClipStore | EmbeddedClips) -> None:
    """Checks that embeddings were computed with the towers of a backbone; a clip store alone passes.

    Raises:
        EmbeddingError: if they were made with other weights or settings.
    """
    if not isinstance(clips, EmbeddedClips):
        return
    if clips.frames:
        _check_settings(config, clips.frames, _frame_settings(config, backbone, clips.clips))
    if clips.tokens:
        _check_settings(config, clips.tokens, _token_settings(config, backbone))


def _check_settings(config: ExperimentConfig, store: EmbeddingStore, asked: EmbeddingSettings) -> None:
    if config.train.start_from and store.settings.tower != asked.tower:
        raise EmbeddingError(
            f"train.start_from = {display_path(config.train.start_from)} has trained the tower whose embeddings are in "
            f"{display_path(store.path)}, so that they are those of other weights: set embeddings.use to never"
        )
    check_settings(store.path, store.settings, asked)


def _frame_settings(config: ExperimentConfig, backbone: Backbone, clips: ClipStore) -> EmbeddingSettings:
    digest = tower_digest(backbone, "vision")
    return EmbeddingSettings("frames", backbone.width, config.embeddings.precision, digest, clips.settings.key)


def _token_settings(config: ExperimentConfig, backbone: Backbone) -> EmbeddingSettings:
    digest, text = tower_digest(backbone, "text"), config.text
    inputs = {"max_words": text.max_words, "prompt": text.prompt}
    return EmbeddingSettings("tokens", backbone.width, config.embeddings.precision, digest, inputs)


def _load_towers(config: ExperimentConfig, checkpoint: Path | None) -> Backbone:
    if checkpoint:
        return load_student(checkpoint, config).backbone.eval().requires_grad_(False).to(local_device(config))
    backbone = build_backbone(config, config.model.weights)
    return backbone.eval().requires_grad_(False).to(local_device(config))


class _FrameEmbedder:
    """Embeds the frames of the clips of a block and writes them; returns the number of clips."""

    def __init__(self, config: ExperimentConfig, folder: Path, clips: Path, checkpoint: Path | None):
        self._folder, self._clips, self._backbone = folder, ClipStore(clips), _load_towers(config, checkpoint)
        self._settings = _frame_settings(config, self._backbone, self._clips)
        create_embeddings(folder, self._settings)

    def __call__(self, block: pa.Table) -> int:
        clip_ids = block["id"].to_pylist()
        frames, num_frames = self._clips.read(clip_ids)
        valid = np.arange(frames.shape[1]) < num_frames[:, None]
        values = np.split(embed_frames(self._backbone, frames[valid]), np.cumsum(num_frames)[:-1])
        sources = self._clips.blocks_of(clip_ids)
        items = [(clip, sources[clip], of_clip) for clip, of_clip in zip(clip_ids, values, strict=True)]
        write_items(self._folder, self._settings, items)
        return len(clip_ids)


class _TokenEmbedder:
    """Embeds the tokens of the captions of a block and writes them; returns the number of captions."""

    def __init__(self, config: ExperimentConfig, folder: Path, checkpoint: Path | None):
        self._config, self._folder, self._backbone = config, folder, _load_towers(config, checkpoint)
        self._settings = _token_settings(config, self._backbone)
        create_embeddings(folder, self._settings)

    def __call__(self, block: pa.Table) -> int:
        captions, text = block["id"].to_pylist(), self._config.text
        tokenizer = build_tokenizer(self._config)
        values = embed_texts(self._backbone, tokenizer, captions, max_words=text.max_words, prompt=text.prompt)
        items = [(caption, "", of_caption) for caption, of_caption in zip(captions, values, strict=True)]
        write_items(self._folder, self._settings, items)
        return len(captions)
