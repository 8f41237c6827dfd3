"""Opens what a run learns from the frozen teacher: its embeddings of clips and captions, and the phrases in its space."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float
from torch import Tensor

from waver.config import ExperimentConfig
from waver.data.clip_store import ClipStore
from waver.data.embedded_clips import EmbeddedClips, EmbeddingPaths
from waver.data.ledger import StoreError
from waver.knowledge.soft_targets import FrozenEmbeddings, PhraseSpace, Spaces, phrase_space
from waver.knowledge.store import Knowledge
from waver.runs.embeddings import Needs, RunBlocks, embed_missing, is_embedded, run_in_process
from waver.runs.inputs import open_store
from waver.tools.names import abbreviate
from waver.tools.object_store import display_path

_SAMPLE = 2048
"""Number of training captions, and of clips, from which means and temperatures are computed."""


@dataclass(frozen=True)
class FrozenPaths:
    """Folders of what a run reads of frozen backbones."""

    teacher: EmbeddingPaths
    """The teacher's embeddings of the clips and captions that are trained on."""
    student: EmbeddingPaths | None = None
    """Embeddings of a sample of them by the student's own backbone before training; None if the teacher is that backbone, or
    no term of the loss compares with phrases."""


def open_teacher_store(config: ExperimentConfig, captions: pa.Table, store: ClipStore) -> ClipStore:
    """Opens the clip store whose frames the teacher reads.

    Args:
        config: configuration of the experiment.
        captions: its caption table.
        store: its clip store, which is the teacher's too unless the teacher reads other frames.

    Raises:
        StoreError: see `open_store`; also if clips have frames for the student and none for the teacher.
    """
    if config.teacher.clip_store == config.clip_store:
        return store
    theirs = open_store(config.teacher, captions)
    asked = set(captions["clip_id"].to_pylist()) & set(store.ok_clip_ids())
    if lacking := sorted(asked - set(theirs.ok_clip_ids())):
        raise StoreError(
            f"{len(lacking)} clips have frames in {display_path(store.path)} and none for the teacher in "
            f"{display_path(theirs.path)} ({abbreviate(lacking)}): run `waver ingest CONFIG`, which tries them again"
        )
    return theirs


def embed_for_teacher(
    config: ExperimentConfig,
    captions: pa.Table,
    clips: ClipStore,
    rows: np.ndarray,
    *,
    run: RunBlocks = run_in_process,
    progress: bool = True,
) -> FrozenPaths:
    """Embeds what a run reads of frozen backbones and is not stored yet.

    Args:
        config: configuration of the experiment.
        captions: its caption table.
        clips: its clip store.
        rows: rows of the caption table that are trained on.
        run: processes the blocks of items, by default in this process.
        progress: whether to show progress on standard error.

    Raises:
        StoreError: see `open_teacher_store`.
        EmbeddingError: see `embed_missing`.
        LockedError: if another process writes a store.
    """
    theirs = open_teacher_store(config, captions, clips)
    teacher = embed_missing(config.teacher, theirs, _needs(captions, rows), run=run, progress=progress)
    if (sample := _sample_needs(config, captions, rows)) is None:
        return FrozenPaths(teacher)
    return FrozenPaths(teacher, embed_missing(config, clips, sample, run=run, progress=progress))


def is_embedded_for_teacher(config: ExperimentConfig, captions: pa.Table, clips: ClipStore, rows: np.ndarray) -> bool:
    """Returns whether `embed_for_teacher` would have nothing to embed; raises as it does."""
    theirs = open_teacher_store(config, captions, clips)
    sample = _sample_needs(config, captions, rows)
    has_sample = sample is None or is_embedded(config, clips, sample)
    return has_sample and is_embedded(config.teacher, theirs, _needs(captions, rows))


def _needs(captions: pa.Table, rows: np.ndarray) -> Needs:
    """Returns what the teacher embeds: all that is trained on."""
    train = captions.take(rows)
    return Needs(pc.unique(train["clip_id"]).to_pylist(), pc.unique(train["caption"]).to_pylist(), makes_captions=True)


def _sample_needs(config: ExperimentConfig, captions: pa.Table, rows: np.ndarray) -> Needs | None:
    """Returns what the student's own backbone embeds, see `FrozenPaths.student`."""
    if not (config.has_other_teacher and config.uses_soft_targets):
        return None
    clip_ids, texts = _sample(captions, rows)
    return Needs(clip_ids, list(dict.fromkeys(texts)), makes_captions=True)


def open_teacher(config: ExperimentConfig, paths: FrozenPaths, clips: ClipStore) -> FrozenEmbeddings:
    """Opens the teacher's embeddings, which `embed_for_teacher` made; `clips` is the clip store of the experiment."""
    if config.teacher.clip_store != config.clip_store:
        clips = ClipStore(config.teacher.clip_store)
    return _open(config.teacher, paths.teacher, clips)


def build_spaces(
    config: ExperimentConfig,
    captions: pa.Table,
    rows: np.ndarray,
    knowledge: Knowledge,
    paths: FrozenPaths,
    clips: ClipStore,
) -> Spaces:
    """Builds the spaces in which clips and captions are compared with phrases, from a sample of what is trained on.

    The sample, and the phrases of a batch that decide the temperatures, are evenly spaced, so that all workers and a resumed
    run find the same.

    Args:
        config: configuration of the experiment.
        captions: its caption table.
        rows: rows of the caption table that are trained on.
        knowledge: the phrases of the clips.
        paths: from `embed_for_teacher`.
        clips: clip store of the experiment.

    Raises:
        KnowledgeError: if the clips of a batch have too few different phrases for `knowledge.effective_phrases`.
    """
    clip_ids, texts = _sample(captions, rows)
    batch = _evenly(_clips(captions, rows), config.train.global_batch_size).tolist()
    pool = knowledge.phrase_ids(batch, config.knowledge.top_k).unique()

    def build(frozen: FrozenEmbeddings, phrases: Float[Tensor, "P D"]) -> PhraseSpace:
        number = config.knowledge.effective_phrases
        return phrase_space(phrases, frozen.clips(clip_ids), frozen.captions(texts), pool, effective_phrases=number)

    teacher = build(open_teacher(config, paths, clips), knowledge.phrase_embeddings("teacher"))
    if paths.student is None:
        return Spaces(teacher=teacher, student=teacher)
    return Spaces(teacher, build(_open(config, paths.student, clips), knowledge.phrase_embeddings("student")))


def _open(config: ExperimentConfig, paths: EmbeddingPaths, clips: ClipStore) -> FrozenEmbeddings:
    opened = paths.open(clips)
    assert isinstance(opened, EmbeddedClips), "frozen backbones are read from stored embeddings"
    return FrozenEmbeddings(opened, config.text.max_words)


def _sample(captions: pa.Table, rows: np.ndarray) -> tuple[list[str], list[str]]:
    """Returns at most `_SAMPLE` clips, and the same number of captions, of those that are trained on."""
    texts = captions["caption"].take(_evenly(rows, _SAMPLE)).to_pylist()
    return _evenly(_clips(captions, rows), _SAMPLE).tolist(), texts


def _clips(captions: pa.Table, rows: np.ndarray) -> np.ndarray:
    return np.array(pc.unique(captions["clip_id"].take(rows)).to_pylist(), dtype=object)


def _evenly(items: np.ndarray, number: int) -> np.ndarray:
    """Returns at most `number` items, evenly spaced."""
    return items[np.unique(np.linspace(0, len(items) - 1, min(number, len(items))).round().astype(int))]
