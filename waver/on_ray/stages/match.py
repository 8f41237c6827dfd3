"""Finds the phrases of the dictionary that describe each clip, with the frozen teacher: in this process or on Ray Data.

Each actor has a teacher. The actors first embed the phrases of the dictionary in parts. Then they match clips by their
frames alone, which they read as pixels or, by default, as stored embeddings. Each actor writes its results itself, so that
a command that was stopped resumes. The phrases of a clip do not depend on the number of actors. One worker on this machine
needs no Ray. With several, this process still matches the clips if they are few and their embeddings are stored.
"""

import logging
from collections.abc import Sequence
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
from waver.knowledge.errors import KnowledgeError
from waver.knowledge.released import read_released
from waver.knowledge.store import (
    MEAN_FILE,
    Dictionary,
    Knowledge,
    Space,
    create_knowledge,
    mark_complete,
    write_clip_mean,
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
from waver.runs.soft_targets import open_teacher_store
from waver.tools.lock import hold_lock
from waver.tools.object_store import exists
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
    train_ids: Sequence[str] = (),
    progress: bool = True,
) -> Knowledge:
    """Matches the clips that are not matched yet with phrases, on the connected Ray cluster if it is needed.

    Args:
        config: configuration of the experiment.
        clip_ids: clips that have frames.
        store: clip store with the frames that the teacher reads.
        dictionary: the phrases.
        released: imported matches (MATCHES_SCHEMA). Then only phrases are embedded, and other clips are not matched.
        train_ids: clips whose mean is subtracted if `knowledge.matching` is centred.
        progress: whether to show progress on standard error.

    Raises:
        KnowledgeError: if the knowledge folder was made from another dictionary or teacher.
        ClusterTooSmallError: if the cluster is too small for the minimum of resources.workers.
    """
    knowledge = open_knowledge_folder(config, dictionary, imported=released is not None)
    return _fill(knowledge, config, clip_ids, store, released, train_ids, progress=progress)


def open_knowledge_folder(config: ExperimentConfig, dictionary: Dictionary, *, imported: bool) -> Knowledge:
    """Creates the folder of the knowledge of an experiment, or opens it if it has the same dictionary and teacher.

    Raises:
        KnowledgeError: if it was made from another dictionary or teacher.
    """
    settings = {"student": build_teacher(config).digest()} if config.has_other_teacher else {}
    if config.knowledge.matching != "cosine":  # the manifests of earlier versions have neither setting
        settings["matching"] = config.knowledge.matching
    return create_knowledge(
        config.knowledge_store,
        dictionary,
        source="released" if imported else "matched",
        teacher=build_teacher(config.teacher).digest(),
        num_matches=min(config.knowledge.num_matches, len(dictionary.phrases)),
        **settings,
    )


def _embed_dictionary(knowledge: Knowledge, config: ExperimentConfig, *, progress: bool) -> None:
    """Embeds the phrases that are not embedded yet: by the student's own backbone and by the teacher, if it is another."""
    run, folder = choose_runner(config), knowledge.path
    spaces: list[Space] = ["student", "teacher"] if config.has_other_teacher else ["student"]
    for space in spaces:
        embedded, starts = knowledge.embedded_parts(space), range(0, knowledge.num_phrases, _PHRASES_PER_PART)
        if not (parts := [pa.table({"first": [first]}) for first in starts if first not in embedded]):
            continue
        num_phrases = min(len(parts) * _PHRASES_PER_PART, knowledge.num_phrases)
        backbone = config.teacher if space == "teacher" else config
        with closing(run(_Embedder, (backbone, folder, knowledge.embeddings_folder(space).name), parts)) as done:
            shown = {"doing": "embedding", "unit": "phrases", "total": num_phrases, "enabled": progress}
            for _ in track_progress(done, size=int, **shown):
                pass


def _import_matches(knowledge: Knowledge, released: pa.Table) -> Knowledge:
    """Imports the phrases of the clips that have none yet; `released` is a table of MATCHES_SCHEMA."""
    unmatched = pa.array(knowledge.unmatched_clips(released["clip_id"].to_pylist()), pa.string())
    write_matches(knowledge.path, released.filter(pc.is_in(released["clip_id"], value_set=unmatched)))
    logger.info(f"the phrases of {len(released)} clips are imported")
    return mark_complete(knowledge.path)


def _fill(
    knowledge: Knowledge,
    config: ExperimentConfig,
    clip_ids: list[str],
    store: ClipStore,
    released: pa.Table | None,
    train_ids: Sequence[str],
    *,
    progress: bool,
) -> Knowledge:
    """Does the work of `match` in the folder of the knowledge."""
    _embed_dictionary(knowledge, config, progress=progress)
    if released is not None:
        return _import_matches(knowledge, released)
    folder, num_matches = knowledge.path, knowledge.manifest["num_matches"]
    teacher, run, todo = config.teacher, choose_runner(config), knowledge.unmatched_clips(clip_ids)
    logger.info(
        f"{len(clip_ids) - len(todo)} of {len(clip_ids)} clips are already matched with {knowledge.num_phrases} phrases"
    )
    if todo:
        blocks = [
            pa.table({"clip_id": todo[first : first + CLIPS_PER_BLOCK]})
            for first in range(0, len(todo), CLIPS_PER_BLOCK)
        ]
        needs = Needs() if config.embeddings.use == "never" else Needs(todo)
        embeddings = embed(teacher, store, needs, progress=progress)
        if knowledge.is_centred and not exists(folder / MEAN_FILE):
            write_clip_mean(folder, _mean_clip(teacher, store, train_ids, progress=progress))
        arguments = (teacher, folder, store.path, num_matches, embeddings)
        if embeddings.frames is not None and len(todo) * knowledge.num_phrases <= _FEW_SCORES:
            run = run_in_process
        with closing(run(_Matcher, arguments, blocks)) as done:
            for _ in track_progress(done, doing="matching", unit="clips", total=len(todo), size=int, enabled=progress):
                pass
    return mark_complete(folder)


def _mean_clip(teacher: ExperimentConfig, store: ClipStore, clip_ids: Sequence[str], *, progress: bool) -> Tensor:
    """Returns the teacher's mean clip, in this process and in the order of the ids, whatever the number of workers.

    Raises:
        EmbeddingError: if stored embeddings were computed with other weights.
        KnowledgeError: if there is no clip, or values are NaN or infinite.
    """
    if not clip_ids:
        raise KnowledgeError("knowledge.matching = centred, but no training clip has frames: set it to cosine")
    clips = embed(teacher, store, Needs(clip_ids), progress=progress).open(store)
    check_embeddings(teacher, build_teacher(teacher).backbone, clips)
    total = torch.zeros((), dtype=torch.float64)
    for first in range(0, len(clip_ids), CLIPS_PER_BLOCK):
        total = total + mean_frames(*clips.read(clip_ids[first : first + CLIPS_PER_BLOCK])).double().sum(dim=0)
    if not total.isfinite().all():
        raise KnowledgeError(
            "the teacher's embeddings of training clips have values that are NaN or infinite: its weights are probably "
            "damaged; name an intact copy"
        )
    return (total / len(clip_ids)).float()


class _Embedder:
    """Embeds the phrases of a part of the dictionary and writes the embeddings; returns the number of phrases."""

    def __init__(self, config: ExperimentConfig, folder: Path, name: str):
        self._folder, self._name = folder, name
        self._teacher, self._phrases = build_teacher(config), Knowledge(folder).phrases

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
        write_embeddings(self._folder, first, embeddings, name=self._name)
        return len(phrases)


class _Matcher:
    """Finds the best phrases of the clips of a block and writes them; returns the number of clips."""

    def __init__(
        self, config: ExperimentConfig, folder: Path, store: Path, num_matches: int, embeddings: EmbeddingPaths
    ):
        self._folder, self._num_matches, self._clips = folder, num_matches, embeddings.open(ClipStore(store))
        self._teacher = build_teacher(config)
        check_embeddings(config, self._teacher.backbone, self._clips)
        knowledge = Knowledge(folder)
        phrases, mean = knowledge.phrase_embeddings("teacher"), knowledge.clip_mean()
        self._mean = mean.to(self._teacher.device) if mean is not None else None
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
        ids, scores = match_clips(clips, self._phrases, self._num_matches, mean=self._mean)
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
    store = open_teacher_store(config, inputs.captions, inputs.store)
    if config.knowledge.released:
        dictionary, matches = read_released(config.knowledge.released, sorted(data_set), config.knowledge.num_matches)
    else:
        dictionary, matches = open_dictionary(config, inputs.captions), None
    train = set(inputs.captions["clip_id"].filter(pc.equal(inputs.captions["split"], "train")).to_pylist())
    train_ids = [clip_id for clip_id in clip_ids if clip_id in train]
    with hold_lock(config.knowledge_store, "matching"):
        knowledge = open_knowledge_folder(config, dictionary, imported=matches is not None)
        if config.teacher.model.weights:
            logger.info(weights_text(config.teacher.model.backbone, config.teacher.model.weights))
        work = (knowledge, config, clip_ids, store, matches, train_ids)
        if runs_in_process(config.resources):
            return _fill(*work, progress=progress)
        with connect(num_cpus=local_cpus(config)) as description:
            logger.info(description)
            return _fill(*work, progress=progress)
