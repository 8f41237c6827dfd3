"""Clips x phrases: which phrases of the dictionary describe each clip, by the frozen teacher, through Ray Data.

Actors hold one teacher each. First they embed the phrases of the dictionary, a part at a time; then they match clips from
their frames alone. Each writes what it finds by itself, so a run that was stopped goes on where it was, and a clip gets the
same phrases whoever matches it.
"""

import logging
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F

from waver.config import ExperimentConfig
from waver.data.clip_store import ClipStore
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
from waver.knowledge.teacher import Teacher, best_phrases
from waver.model.weights import load_backbone
from waver.on_ray.cluster.blocks import ActorPool, map_blocks
from waver.on_ray.cluster.capacity import WorkerResources, local_cpus, require_capacity
from waver.on_ray.cluster.connection import connect, gpus_per_worker
from waver.runs.inputs import load_captions, open_dictionary, open_store
from waver.tools.progress import track_progress
from waver.training.build import local_device

logger = logging.getLogger(__name__)


_PHRASES_PER_PART = 1024
_CLIPS_PER_BLOCK = 16


def match(
    config: ExperimentConfig,
    clip_ids: list[str],
    store: ClipStore,
    dictionary: Dictionary,
    *,
    released: pa.Table | None = None,
    progress: bool = True,
) -> Knowledge:
    """Matches clips with phrases on the connected Ray cluster, those that are not matched yet.

    Args:
        config: of the experiment.
        clip_ids: clips that have frames.
        store: their frames.
        dictionary: the phrases.
        released: matches that are known already (MATCHES_SCHEMA); then only the phrases are embedded, and clips without
            matches stay without.
        progress: whether to show it, on standard error.

    Raises:
        KnowledgeError: where the folder holds what was made from something else.
        ClusterTooSmallError: for resources.workers, the fewest of them.
    """
    folder = config.knowledge_store
    num_matches = min(config.knowledge.num_matches, len(dictionary.phrases))
    teacher = build_teacher(config).digest()  # the actors have their own
    source = "matched" if released is None else "released"
    knowledge = create_knowledge(folder, dictionary, source=source, teacher=teacher, num_matches=num_matches)
    resources = config.resources
    share = WorkerResources(resources.cpus_per_worker, gpus_per_worker(resources), resources.node_labels)
    require_capacity(resources.min_workers, share, wait_s=resources.wait_s)
    pool = ActorPool(resources.min_workers, resources.max_workers, share, wait_s=resources.wait_s)
    embedded, starts = knowledge.embedded_parts(), range(0, knowledge.num_phrases, _PHRASES_PER_PART)
    if parts := [pa.table({"first": [first]}) for first in starts if first not in embedded]:
        num_phrases = min(len(parts) * _PHRASES_PER_PART, knowledge.num_phrases)
        with closing(map_blocks(_Embedder, (config, folder), parts, pool)) as done:
            for _ in track_progress(
                done, doing="embedding", unit="phrases", total=num_phrases, size=int, enabled=progress
            ):
                pass
    if released is not None:
        unknown = pa.array(knowledge.unmatched_clips(released["clip_id"].to_pylist()), pa.string())
        write_matches(folder, released.filter(pc.is_in(released["clip_id"], value_set=unknown)))
        logger.info(f"{len(released)} clips come with their phrases")
        return mark_complete(folder)
    todo = knowledge.unmatched_clips(clip_ids)
    logger.info(
        f"{len(clip_ids) - len(todo)} of {len(clip_ids)} clips are matched with {knowledge.num_phrases} phrases"
    )
    if todo:
        blocks = [
            pa.table({"clip_id": todo[first : first + _CLIPS_PER_BLOCK]})
            for first in range(0, len(todo), _CLIPS_PER_BLOCK)
        ]
        arguments = (config, folder, store.path, num_matches)
        with closing(map_blocks(_Matcher, arguments, blocks, pool)) as done:
            for _ in track_progress(done, doing="matching", unit="clips", total=len(todo), size=int, enabled=progress):
                pass
    return mark_complete(folder)


def build_teacher(config: ExperimentConfig) -> Teacher:
    """The frozen teacher of an experiment: its backbone with the pre-trained weights, on a GPU where there is one."""
    backbone = load_backbone(config.model.backbone, config.model.weights, image_size=config.video.size)
    return Teacher(backbone.to(local_device(config)), config.knowledge.prompt)


class _Embedder:
    """Embeds the phrases of a part of the dictionary, and writes them; returns how many."""

    def __init__(self, config: ExperimentConfig, folder: Path):
        self._folder, self._teacher, self._phrases = folder, build_teacher(config), Knowledge(folder).phrases

    def __call__(self, part: pa.Table) -> int:
        first = part["first"][0].as_py()
        phrases = self._phrases[first : first + _PHRASES_PER_PART]
        # In small batches of about equal length: padding is work, and the order of the dictionary says nothing of lengths.
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
    """Finds the best phrases of the clips of a block, and writes them; returns how many clips."""

    def __init__(self, config: ExperimentConfig, folder: Path, store: Path, num_matches: int):
        self._folder, self._num_matches, self._store = folder, num_matches, ClipStore(store)
        self._teacher = build_teacher(config)
        phrases = Knowledge(folder).phrase_embeddings()
        # In place: the table is the largest thing in memory.
        self._phrases = F.normalize(phrases, dim=-1, out=phrases).to(self._teacher.device)

    def __call__(self, block: pa.Table) -> int:
        rows = []
        for clip_id in block["clip_id"].to_pylist():
            # One clip at a time: in company its last bits could be others, and ties would fall otherwise.
            frames, num_frames = self._store.read([clip_id])
            clip = self._teacher.embed_clip(torch.from_numpy(frames[0, : num_frames[0]]).permute(0, 3, 1, 2))
            ids, scores = best_phrases(clip, self._phrases, self._num_matches)
            rows.append({"clip_id": clip_id, "phrase_ids": ids.tolist(), "scores": scores.tolist()})
        write_matches(self._folder, pa.Table.from_pylist(rows))
        return len(rows)


def run_match(config: ExperimentConfig, *, progress: bool = True) -> Knowledge:
    """Matches the clips of an experiment with the phrases of its dictionary, or imports released matches.

    Raises:
        KnowledgeError: where something is missing that must be made first, or was made from something else.
        AnnotationError: for released files that do not fit.
    """
    captions = load_captions(config)
    store = open_store(config, captions)
    asked = set(captions["clip_id"].to_pylist())
    clip_ids = [clip_id for clip_id in store.ok_clip_ids() if clip_id in asked]
    if config.model.weights is None:
        raise KnowledgeError(
            "model.weights = null makes a teacher with random weights, who knows nothing: name a file or a pretrained tag"
        )
    with connect(num_cpus=local_cpus(config)) as where:
        logger.info(where)
        if config.knowledge.released:
            dictionary, matches = read_released(config.knowledge.released, sorted(asked), config.knowledge.num_matches)
        else:
            dictionary, matches = open_dictionary(config, captions), None
        return match(config, clip_ids, store, dictionary, released=matches, progress=progress)
