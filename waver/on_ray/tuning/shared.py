"""What the trials of a sweep share: clip stores, dictionaries, knowledge. Each is made once, before the trials, or found."""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from waver.config import ExperimentConfig
from waver.data.clip_store import StoreError
from waver.knowledge.store import KnowledgeError
from waver.on_ray.stages.ingest import run_ingest
from waver.on_ray.stages.match import run_match
from waver.on_ray.stages.vocabulary import run_vocabulary
from waver.runs.inputs import load_captions, open_store, training_knowledge
from waver.tools.object_store import exists

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SharedArtifact:
    """One thing that trials read and none writes."""

    what: str
    path: Path
    trials: int
    """That use it; 0 where Optuna has not drawn them yet."""
    there: bool
    """Whether it was found, finished."""
    seconds: float = 0.0
    """That it took to make."""


def find_shared(configs: Iterable[ExperimentConfig], *, count: bool = True) -> list[SharedArtifact]:
    """What experiments share and whether it is there; makes nothing."""
    return [
        SharedArtifact(what, path, len(users) if count else 0, _is_there(what, users[0]))
        for (what, path), users in _users(configs).items()
    ]


def make_shared(configs: Iterable[ExperimentConfig], *, count: bool = True) -> list[SharedArtifact]:
    """Makes what is missing, on the connected Ray cluster.

    Returns:
        What there is, and what it took.

    Raises:
        WaverError: if one of them cannot be made.
    """
    made = []
    for (what, path), users in _users(configs).items():
        there, start = _is_there(what, users[0]), time.perf_counter()
        logger.info(f"{what} of {len(users) if count else 'the'} trials: {'found' if there else 'making'} {path}")
        if not there:
            _make(what, users[0])
        made.append(SharedArtifact(what, path, len(users) if count else 0, there, time.perf_counter() - start))
    return made


def _users(configs: Iterable[ExperimentConfig]) -> dict[tuple[str, Path], list[ExperimentConfig]]:
    """(what, where) -> experiments that use it; clips stand before the knowledge that is made of them."""
    clips: dict[tuple[str, Path], list[ExperimentConfig]] = {}
    knowledge: dict[tuple[str, Path], list[ExperimentConfig]] = {}
    for config in configs:
        clips.setdefault(("clip store", config.clip_store), []).append(config)
        if config.uses_knowledge:
            knowledge.setdefault(("knowledge", config.knowledge_store), []).append(config)
    # Who needs knowledge of more clips stands first, and it is made for them.
    for users in knowledge.values():
        users.sort(key=lambda config: not config.informed_at_inference)
    return clips | knowledge


def _is_there(what: str, config: ExperimentConfig) -> bool:
    captions = load_captions(config)
    try:
        store = open_store(config, captions)
        if what == "knowledge":
            training_knowledge(config, captions, store)
    except (StoreError, KnowledgeError):
        return False
    return True


def _make(what: str, config: ExperimentConfig) -> None:
    if what == "clip store":
        run_ingest(config)
        return
    if not config.knowledge.released and not exists(config.dictionary / "manifest.json"):
        run_vocabulary(config)
    run_match(config)
