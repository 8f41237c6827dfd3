"""Embeds frames and captions with frozen towers, once for all stages that read them: in this process or on Ray Data.

Each actor has a backbone and writes its results itself, so that a command that was stopped resumes. The embedding of a clip
or a caption does not depend on the number of actors. One worker on this machine needs no Ray.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import ray

from waver.config import ExperimentConfig
from waver.data.clip_store import ClipStore
from waver.data.embedded_clips import EmbeddingPaths
from waver.model.pretrained.weights import weights_text
from waver.on_ray.cluster.blocks import map_blocks, worker_pool
from waver.on_ray.cluster.capacity import local_cpus
from waver.on_ray.cluster.connection import connect, runs_in_process
from waver.on_ray.stages.start import open_inputs
from waver.runs.embeddings import Needs, RunBlocks, all_needs, embed_missing, run_in_process
from waver.runs.soft_targets import FrozenPaths, embed_for_teacher
from waver.training.plan import training_rows

logger = logging.getLogger(__name__)


def embed(
    config: ExperimentConfig,
    clips: ClipStore,
    needs: Needs,
    *,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> EmbeddingPaths:
    """Embeds what a stage needs and is not stored yet: on actors if Ray is connected and needed, else in this process.

    Args:
        config: configuration of the experiment.
        clips: its clip store.
        needs: what the stage reads.
        checkpoint: checkpoint with the frozen towers; None to load `model.weights`.
        progress: whether to show progress on standard error.

    Raises:
        EmbeddingError: if a store was made from something else, or an embedding is NaN or infinite.
        LockedError: if another process writes a store.
        ClusterTooSmallError: if the cluster is too small for the minimum of resources.workers.
    """
    run = choose_runner(config) if ray.is_initialized() else run_in_process
    return embed_missing(config, clips, needs, checkpoint=checkpoint, run=run, progress=progress)


def choose_runner(config: ExperimentConfig) -> RunBlocks:
    """Returns what processes the blocks of an experiment: this process if that needs no Ray, else actors."""
    return run_in_process if runs_in_process(config.resources) else partial(run_on_actors, config)


def run_on_actors(
    config: ExperimentConfig,
    worker: Callable[..., Callable[[pa.Table], int]],
    arguments: tuple,
    blocks: Sequence[pa.Table],
) -> Iterator[int]:
    """Processes blocks on actors, see `RunBlocks`."""
    return map_blocks(worker, arguments, blocks, worker_pool(config.resources))


@dataclass(frozen=True)
class EmbedReport:
    """Stores that `waver embed` made or found complete, and their numbers of items."""

    paths: EmbeddingPaths
    num_clips: int
    num_captions: int
    """0 if captions are not stored."""
    frozen: FrozenPaths | None = None
    """Stores of the frozen teacher's embeddings of what is trained on; None if no loss learns from the teacher."""


def run_embed(config: ExperimentConfig, *, progress: bool = True) -> EmbedReport:
    """Embeds the frames of all clips of an experiment, and its captions as `embeddings.captions` says.

    If a loss learns from the frozen teacher, it also embeds what is trained on with the teacher.

    Args:
        config: configuration of the experiment.
        progress: whether to show progress on standard error.

    Raises:
        StartError: with everything that prevents the stage, before Ray starts.
        EmbeddingError: if a store was made from something else, or an embedding is NaN or infinite.
        LockedError: if another process writes a store.
        ClusterTooSmallError: if the cluster is too small for the minimum of resources.workers.
    """
    inputs = open_inputs(config, "embed")
    assert inputs.captions is not None, "embedding cannot start without captions"
    assert inputs.store is not None, "embedding cannot start without clip store"
    if config.model.weights:
        logger.info(weights_text(config.model.backbone, config.model.weights))
    needs = all_needs(config, inputs.captions, inputs.store)
    if runs_in_process(config.resources):
        return _embed_all(config, inputs.captions, inputs.store, needs, progress=progress)
    with connect(num_cpus=local_cpus(config)) as description:
        logger.info(description)
        return _embed_all(config, inputs.captions, inputs.store, needs, progress=progress)


def _embed_all(
    config: ExperimentConfig, captions: pa.Table, store: ClipStore, needs: Needs, *, progress: bool
) -> EmbedReport:
    paths, frozen = embed(config, store, needs, progress=progress), None
    if config.uses_teacher:
        rows, run = training_rows(captions, store), choose_runner(config)
        frozen = embed_for_teacher(config, captions, store, rows, run=run, progress=progress)
    return EmbedReport(paths, len(needs.clip_ids or ()), len(needs.captions or ()), frozen)
