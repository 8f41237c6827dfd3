"""Opens what a run learns from the frozen teacher: its embeddings of clips and captions, and the phrases in its space."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from waver.config import ExperimentConfig
from waver.data.clip_store import ClipStore
from waver.data.embedded_clips import EmbeddedClips, EmbeddingPaths
from waver.knowledge.soft_targets import FrozenEmbeddings, Spaces, phrase_space
from waver.knowledge.store import Knowledge
from waver.runs.embeddings import Needs, RunBlocks, embed_missing, run_in_process

_SAMPLE = 2048
"""Number of training captions, and of clips, from which means and temperatures are computed."""


def teacher_needs(captions: pa.Table, rows: np.ndarray) -> Needs:
    """Returns what the teacher of a run reads: the clips and captions that are trained on.

    Args:
        captions: caption table of the experiment.
        rows: rows of the caption table that are trained on.
    """
    train = captions.take(rows)
    return Needs(pc.unique(train["clip_id"]).to_pylist(), pc.unique(train["caption"]).to_pylist(), makes_captions=True)


def embed_for_teacher(
    config: ExperimentConfig,
    captions: pa.Table,
    clips: ClipStore,
    rows: np.ndarray,
    *,
    run: RunBlocks = run_in_process,
    progress: bool = True,
) -> EmbeddingPaths:
    """Embeds what the teacher of a run reads and is not stored yet, see `teacher_needs`.

    Args:
        config: configuration of the experiment.
        captions: its caption table.
        clips: its clip store.
        rows: rows of the caption table that are trained on.
        run: processes the blocks of items, by default in this process.
        progress: whether to show progress on standard error.

    Returns:
        The folders of the embedding stores of frames and captions.

    Raises:
        EmbeddingError: see `embed_missing`.
        LockedError: if another process writes a store.
    """
    return embed_missing(config, clips, teacher_needs(captions, rows), run=run, progress=progress)


def open_teacher(config: ExperimentConfig, paths: EmbeddingPaths, clips: ClipStore) -> FrozenEmbeddings:
    """Opens the stores that `embed_for_teacher` returned."""
    opened = paths.open(clips)
    assert isinstance(opened, EmbeddedClips), "the teacher reads stored embeddings"
    return FrozenEmbeddings(opened, config.text.max_words)


def build_spaces(
    config: ExperimentConfig, captions: pa.Table, rows: np.ndarray, knowledge: Knowledge, teacher: FrozenEmbeddings
) -> Spaces:
    """Builds the spaces in which clips and captions are compared with phrases, from a sample of what is trained on.

    The sample, and the phrases of a batch that decide the temperatures, are evenly spaced, so that all workers and a resumed
    run find the same.

    Raises:
        KnowledgeError: if the clips of a batch have too few different phrases for `knowledge.effective_phrases`.
    """
    train = captions.take(_evenly(rows, _SAMPLE))
    clip_ids = np.array(pc.unique(captions["clip_id"].take(rows)).to_pylist(), dtype=object)
    batch = _evenly(clip_ids, config.train.global_batch_size).tolist()
    space = phrase_space(
        knowledge.phrase_embeddings(),
        teacher.clips(_evenly(clip_ids, _SAMPLE).tolist()),
        teacher.captions(train["caption"].to_pylist()),
        knowledge.phrase_ids(batch, config.knowledge.top_k).unique(),
        effective_phrases=config.knowledge.effective_phrases,
    )
    return Spaces(teacher=space, student=space)


def _evenly(items: np.ndarray, number: int) -> np.ndarray:
    """Returns at most `number` items, evenly spaced."""
    return items[np.unique(np.linspace(0, len(items) - 1, min(number, len(items))).round().astype(int))]
