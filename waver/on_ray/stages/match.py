"""Finds the phrases of the dictionary that describe each clip, with the frozen teacher: in this process or on Ray Data.

Each actor has a teacher. The actors first embed the phrases of the dictionary in parts. Then they match clips by their
frames alone, which they read as pixels or, by default, as stored embeddings. Each actor writes its results itself, so that
a command that was stopped resumes. The phrases of a clip do not depend on the number of actors. One worker on this machine
needs no Ray. With several, this process still matches the clips if they are few and their embeddings are stored.
"""

import logging
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from waver.config import ExperimentConfig
from waver.data.clip_store import ClipStore
from waver.data.embedded_clips import EmbeddingPaths
from waver.knowledge.released import read_released
from waver.knowledge.store import (
    Dictionary,
    Knowledge,
    KnowledgeError,
    create_knowledge,
    mark_complete,
    write_embeddings,
    write_matches,
)
from waver.knowledge.teacher import CLIPS_PER_BLOCK, match_clips, mean_frames
from waver.model.pretrained.weights import weights_text
from waver.on_ray.cluster.capacity import local_cpus
from waver.on_ray.cluster.connection import connect, runs_in_process
from waver.on_ray.stages.embed import choose_runner, embed
from waver.on_ray.stages.start import open_inputs
from waver.runs.embeddings import Needs, check_embeddings, run_in_process
from waver.runs.inputs import open_dictionary
from waver.tools.lock import hold_lock
from waver.tools.progress import track_progress
from waver.training.build import build_teacher

logger = logging.getLogger(__name__)


_PHRASES_PER_PART = 1024
_FEW_SCORES = 10**8
"""Number of scores (clips times phrases) up to which clips with stored embeddings are matched in this process: that takes
less time than starting actors."""


def match(
    config: ExperimentConfig,
    clip_ids: list[str],
    store: ClipStore,
    dictionary: Dictionary,
    *,
    released: pa.Table | None = None,
    progress: bool = True,
) -> Knowledge:
    """Matches the clips that are not matched yet with phrases, on the connected Ray cluster if it is needed.

    Args:
        config: configuration of the experiment.
        clip_ids: clips that have frames.
        store: clip store with these frames.
        dictionary: the phrases.
        released: imported matches (MATCHES_SCHEMA). Then only phrases are embedded, and other clips are not matched.
        progress: whether to show progress on standard error.

    Raises:
        KnowledgeError: if the knowledge folder was made from another dictionary or teacher.
        ClusterTooSmallError: if the cluster is too small for the minimum of resources.workers.
    """
    knowledge = open_knowledge_folder(config, dictionary, imported=released is not None)
    return _fill(knowledge, config, clip_ids, store, released, progress=progress)


def open_knowledge_folder(config: ExperimentConfig, dictionary: Dictionary, *, imported: bool) -> Knowledge:
    """Creates the folder of the knowledge of an experiment, or opens it if it has the same dictionary and teacher.

    Raises:
        KnowledgeError: if it was made from another dictionary or teacher.
    """
    return create_knowledge(
        config.knowledge_store,
        dictionary,
        source="released" if imported else "matched",
        teacher=build_teacher(config).digest(),
        num_matches=min(config.knowledge.num_matches, len(dictionary.phrases)),
    )


def _fill(
    knowledge: Knowledge,
    config: ExperimentConfig,
    clip_ids: list[str],
    store: ClipStore,
    released: pa.Table | None,
    *,
    progress: bool,
) -> Knowledge:
    """Does the work of `match` in the folder of the knowledge."""
    folder, num_matches = knowledge.path, knowledge.manifest["num_matches"]
    run = choose_runner(config)
    embedded, starts = knowledge.embedded_parts(), range(0, knowledge.num_phrases, _PHRASES_PER_PART)
    if parts := [pa.table({"first": [first]}) for first in starts if first not in embedded]:
        num_phrases = min(len(parts) * _PHRASES_PER_PART, knowledge.num_phrases)
        with closing(run(_Embedder, (config, folder), parts)) as done:
            for _ in track_progress(
                done, doing="embedding", unit="phrases", total=num_phrases, size=int, enabled=progress
            ):
                pass
    if released is not None:
        unmatched = pa.array(knowledge.unmatched_clips(released["clip_id"].to_pylist()), pa.string())
        write_matches(folder, released.filter(pc.is_in(released["clip_id"], value_set=unmatched)))
        logger.info(f"the phrases of {len(released)} clips are imported")
        return mark_complete(folder)
    todo = knowledge.unmatched_clips(clip_ids)
    logger.info(
        f"{len(clip_ids) - len(todo)} of {len(clip_ids)} clips are already matched with {knowledge.num_phrases} phrases"
    )
    if todo:
        blocks = [
            pa.table({"clip_id": todo[first : first + CLIPS_PER_BLOCK]})
            for first in range(0, len(todo), CLIPS_PER_BLOCK)
        ]
        needs = Needs() if config.embeddings.use == "never" else Needs(todo)
        embeddings = embed(config, store, needs, progress=progress)
        arguments = (config, folder, store.path, num_matches, embeddings)
        if embeddings.frames is not None and len(todo) * knowledge.num_phrases <= _FEW_SCORES:
            run = run_in_process
        with closing(run(_Matcher, arguments, blocks)) as done:
            for _ in track_progress(done, doing="matching", unit="clips", total=len(todo), size=int, enabled=progress):
                pass
    return mark_complete(folder)


class _Embedder:
    """Embeds the phrases of a part of the dictionary and writes the embeddings; returns the number of phrases."""

    def __init__(self, config: ExperimentConfig, folder: Path):
        self._folder, self._teacher, self._phrases = folder, build_teacher(config), Knowledge(folder).phrases

    def __call__(self, part: pa.Table) -> int:
        first = part["first"][0].as_py()
        phrases = self._phrases[first : first + _PHRASES_PER_PART]
        # In small batches of phrases of similar length, which need less padding.
        order = np.argsort([len(phrase) for phrase in phrases], kind="stable")
        embeddings = None
        for rows in np.array_split(order, -(-len(order) // 64)):
            values = self._teacher.embed_phrases([phrases[row] for row in rows]).float().cpu()
            if embeddings is None:
                embeddings = torch.empty(len(phrases), values.shape[1])
            embeddings[rows] = values
        write_embeddings(self._folder, first, embeddings)
        return len(phrases)


class _Matcher:
    """Finds the best phrases of the clips of a block and writes them; returns the number of clips."""

    def __init__(
        self, config: ExperimentConfig, folder: Path, store: Path, num_matches: int, embeddings: EmbeddingPaths
    ):
        self._folder, self._num_matches, self._clips = folder, num_matches, embeddings.open(ClipStore(store))
        self._teacher = build_teacher(config)
        check_embeddings(config, self._teacher.backbone, self._clips)
        phrases = Knowledge(folder).phrase_embeddings()
        # In place, because the table is the largest object in memory.
        self._phrases = F.normalize(phrases, dim=-1, out=phrases).to(self._teacher.device)

    def __call__(self, block: pa.Table) -> int:
        clip_ids: list[str] = block["clip_id"].to_pylist()
        clips = self._embed(clip_ids)
        if not (finite := clips.isfinite().all(dim=1)).all():
            bad = clip_ids[int(finite.int().argmin())]
            raise KnowledgeError(
                f"the teacher's embedding of {bad} has values that are NaN or infinite: the weights are probably "
                "damaged; set model.weights to an intact copy"
            )
        ids, scores = match_clips(clips, self._phrases, self._num_matches)
        columns = {"clip_id": clip_ids, "phrase_ids": ids.tolist(), "scores": scores.tolist()}
        write_matches(self._folder, pa.table(columns))
        return len(clip_ids)

    def _embed(self, clip_ids: list[str]) -> Float[Tensor, "N D"]:
        """Embeds clips from their pixels, or from the stored embeddings of their frames."""
        frames, num_frames = self._clips.read(clip_ids)
        clips = self._teacher.embed_clips(frames, num_frames) if frames.ndim == 5 else mean_frames(frames, num_frames)
        return clips.to(self._teacher.device)


def run_match(config: ExperimentConfig, *, progress: bool = True) -> Knowledge:
    """Matches the clips of an experiment with the phrases of its dictionary, or imports released matches.

    Holds the lock of the knowledge folder: without it two commands would lose nothing, but match every clip twice.

    Args:
        config: configuration of the experiment.
        progress: whether to show progress on standard error.

    Raises:
        StartError: with everything that prevents the stage, before Ray starts.
        KnowledgeError: if the knowledge folder was made from another dictionary or teacher.
        AnnotationError: if released files do not fit the data set.
        LockedError: if another process writes the knowledge.
        ClusterTooSmallError: if the cluster is too small for the minimum of resources.workers.
    """
    inputs = open_inputs(config, "match")
    assert inputs.captions is not None, "matching cannot start without captions"
    assert inputs.store is not None, "matching cannot start without clip store"
    data_set = set(inputs.captions["clip_id"].to_pylist())
    clip_ids = [clip_id for clip_id in inputs.store.ok_clip_ids() if clip_id in data_set]
    if config.knowledge.released:
        dictionary, matches = read_released(config.knowledge.released, sorted(data_set), config.knowledge.num_matches)
    else:
        dictionary, matches = open_dictionary(config, inputs.captions), None
    with hold_lock(config.knowledge_store, "matching"):
        knowledge = open_knowledge_folder(config, dictionary, imported=matches is not None)
        if config.model.weights:
            logger.info(weights_text(config.model.backbone, config.model.weights))
        if runs_in_process(config.resources):
            return _fill(knowledge, config, clip_ids, inputs.store, matches, progress=progress)
        with connect(num_cpus=local_cpus(config)) as description:
            logger.info(description)
            return _fill(knowledge, config, clip_ids, inputs.store, matches, progress=progress)
