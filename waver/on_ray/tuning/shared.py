"""Finds or makes the artifacts that the trials of a sweep share: clip stores, embeddings, dictionaries and knowledge."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from waver.config import ExperimentConfig
from waver.data.embedding_store import EmbeddingError
from waver.data.ledger import StoreError
from waver.knowledge.errors import KnowledgeError, TooFewPhrasesError
from waver.knowledge.store import Knowledge
from waver.on_ray.stages.embed import choose_runner, embed
from waver.on_ray.stages.ingest import run_ingest
from waver.on_ray.stages.match import run_match
from waver.on_ray.stages.vocabulary import run_vocabulary
from waver.runs.embeddings import is_embedded, training_needs
from waver.runs.inputs import check_top_k, load_captions, open_store, training_knowledge
from waver.runs.soft_targets import embed_for_teacher, is_embedded_for_teacher, open_teacher_store
from waver.tools.object_store import exists
from waver.training.plan import training_rows

logger = logging.getLogger(__name__)

_OF_TEACHER = "embeddings by the teacher"


@dataclass(frozen=True)
class SharedArtifact:
    """A clip store, embedding store or knowledge folder that trials read."""

    what: str
    path: Path
    trials: int
    """Number of trials that read it; 0 if Optuna draws the points later."""
    there: bool
    """Whether it existed, complete, before the sweep."""
    seconds: float = 0.0
    """Seconds that it took to make; 0 if it existed."""


def find_shared(
    configs: Sequence[ExperimentConfig], *, fine_tuned: Sequence[ExperimentConfig] = (), count: bool = True
) -> list[SharedArtifact]:
    """Lists the artifacts that experiments share and whether they exist; makes nothing.

    Args:
        configs: experiments of the trials.
        fine_tuned: experiments of their fine-tunings, which are not counted as trials.
        count: whether to count the trials that read each artifact.
    """
    return [
        SharedArtifact(what, path, _num_trials(users, configs) if count else 0, not _lacking(what, users))
        for (what, path), users in _users([*configs, *fine_tuned]).items()
    ]


def make_shared(
    configs: Sequence[ExperimentConfig], *, fine_tuned: Sequence[ExperimentConfig] = (), count: bool = True
) -> list[SharedArtifact]:
    """Makes the missing artifacts on the connected Ray cluster.

    Args:
        configs: experiments of the trials.
        fine_tuned: experiments of their fine-tunings, which are not counted as trials.
        count: whether to count the trials that read each artifact.

    Returns:
        All artifacts, with the seconds that each took to make.

    Raises:
        WaverError: if one of them cannot be made.
    """
    made = []
    for (what, path), users in _users([*configs, *fine_tuned]).items():
        lacking, start = _lacking(what, users), time.perf_counter()
        number = _num_trials(users, configs) if count else 0
        logger.info(f"{what} of {number or 'the'} trials: {'making' if lacking else 'found'} {path}")
        for config in lacking:
            _make(what, config)
        check_shared(users)
        made.append(SharedArtifact(what, path, number, not lacking, time.perf_counter() - start))
    return made


def _num_trials(users: Sequence[ExperimentConfig], configs: Sequence[ExperimentConfig]) -> int:
    trials = set(map(id, configs))
    return sum(id(user) in trials for user in users)


def _users(configs: Iterable[ExperimentConfig]) -> dict[tuple[str, Path], list[ExperimentConfig]]:
    """Returns (kind, path) -> experiments that read it; clip stores precede what is made from them."""
    clips: dict[tuple[str, Path], list[ExperimentConfig]] = {}
    embeddings: dict[tuple[str, Path], list[ExperimentConfig]] = {}
    knowledge: dict[tuple[str, Path], list[ExperimentConfig]] = {}
    for config in configs:
        for path in dict.fromkeys((config.clip_store, config.teacher.clip_store)):
            clips.setdefault(("clip store", path), []).append(config)
        if config.embeddings.use != "never" and "vision" in config.frozen_towers:
            embeddings.setdefault(("embeddings", config.frame_embeddings), []).append(config)
        if config.uses_teacher:
            embeddings.setdefault((_OF_TEACHER, config.teacher.frame_embeddings), []).append(config)
        if config.uses_knowledge:
            knowledge.setdefault(("knowledge", config.knowledge_store), []).append(config)
    # Knowledge is made for the first experiment: it must be one that needs phrases of test clips too, if there is any.
    for users in knowledge.values():
        users.sort(key=lambda config: not config.informed_at_inference)
    return clips | embeddings | knowledge


def _lacking(what: str, users: Sequence[ExperimentConfig]) -> list[ExperimentConfig]:
    """Returns experiments for which an artifact must still be made: of those with the same clips and captions, the first."""
    first_of: dict[str, ExperimentConfig] = {}
    for config in users:
        first_of.setdefault(config.data.model_dump_json(), config)
    return [config for config in first_of.values() if not _exists(what, config)]


def _exists(what: str, config: ExperimentConfig) -> bool:
    captions = load_captions(config)
    try:
        store = open_store(config, captions)
        open_teacher_store(config, captions, store)
        if what == "knowledge":
            training_knowledge(config, captions, store)
        if what == "embeddings":
            return is_embedded(config, store, training_needs(config, captions, store, training_rows(captions, store)))
        if what == _OF_TEACHER:
            return is_embedded_for_teacher(config, captions, store, training_rows(captions, store))
    except TooFewPhrasesError:
        return True
    except (StoreError, KnowledgeError, EmbeddingError):
        return False
    return True


def check_shared(configs: Iterable[ExperimentConfig]) -> None:
    """Checks that the knowledge that is there has enough phrases for every trial.

    Raises:
        TooFewPhrasesError: if a trial needs more.
    """
    for (what, path), users in _users(configs).items():
        if what == "knowledge" and exists(path / "manifest.json"):
            check_top_k(max(users, key=lambda config: config.knowledge.top_k), Knowledge(path))


def _make(what: str, config: ExperimentConfig) -> None:
    if what == "clip store":
        run_ingest(config)
        return
    if what in ("embeddings", _OF_TEACHER):
        captions = load_captions(config)
        store = open_store(config, captions)
        rows = training_rows(captions, store)
        if what == _OF_TEACHER:
            embed_for_teacher(config, captions, store, rows, run=choose_runner(config))
        else:
            embed(config, store, training_needs(config, captions, store, rows))
        return
    if not config.knowledge.released and not exists(config.dictionary / "manifest.json"):
        run_vocabulary(config)
    run_match(config)
