"""Plans the runs of the experiment, and runs them as Ray tasks; what has been run is read from disk."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from experiments.style_world.runs import Job, run
from experiments.style_world.ways import DECAY, Way
from experiments.style_world.writers import VOCABULARIES, writers_of
from waver.config import ExperimentConfig, load_config
from waver.tools.files import atomic_write
from waver.tools.progress import track_progress

NUM_ROTATIONS, NUM_SEEN = len(VOCABULARIES), 2


def seen_vocabularies(rotation: int) -> tuple[str, ...]:
    """Returns the vocabularies of the writers of training: each vocabulary is unseen in three of five rotations."""
    return tuple(VOCABULARIES[(rotation + step) % NUM_ROTATIONS] for step in range(NUM_SEEN))


@dataclass(frozen=True)
class Place:
    """Where the experiment keeps what its runs share."""

    output: Path
    configuration: Path
    overrides: Mapping[str, Any]

    def config(self, way: Way, rotation: int, seed: int, tuned: Mapping[str, Any]) -> ExperimentConfig:
        """Returns the experiment of a run."""
        settings = {
            "data.annotations": str(self.output / "world" / "captions.jsonl"),
            "data.videos": str(self.output / "world"),
            "data.train_styles": list(writers_of(VOCABULARIES if way.all_writers else seen_vocabularies(rotation))),
            "model.weights": str(self.output / "backbone.safetensors"),
            "storage.path": str(self.output),
            "seed": seed,
            **way.settings,
            **self.dictionary(way.dictionary, rotation),
            **{key: value for key, value in tuned.items() if key != DECAY},
        }
        return load_config(self.configuration, {**settings, **self.overrides})

    def dictionary(self, name: str, rotation: int) -> dict[str, Any]:
        """Returns the settings of a dictionary; that of the seen writers comes from the captions of training."""
        if name == "seen":
            return {}
        path = self.output / "dictionaries" / (f"{name}.txt" if name == "all" else f"{name}-{rotation}.txt")
        return {"vocabulary.file": str(path), "vocabulary.leaky": name == "all"}


@dataclass(frozen=True)
class Asked:
    """A run that is asked for."""

    way: str
    rotation: int
    seed: int
    job: Job

    def key(self, made_from: str) -> str:
        """Returns a short hash of all that its result depends on."""
        job = {**asdict(self.job), "config": self.job.config.digest()}
        text = json.dumps([self.rotation, made_from, {key: str(value) for key, value in job.items()}], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_all(
    asked: Iterable[Asked], folder: Path, made_from: str, *, doing: str
) -> Iterator[tuple[Asked, dict[str, Any]]]:
    """Yields the result of each run: from its file, or from a Ray task with one CPU, which is then written to its file.

    Args:
        asked: the runs.
        folder: folder of the files.
        made_from: what all runs are made from, such as digests of clips and weights; other results do not count.
        doing: verb for the progress bar.
    """
    task, waiting = ray.remote(num_cpus=1, max_retries=2)(run), {}
    folder.mkdir(parents=True, exist_ok=True)
    for one in asked:
        path = folder / f"{one.key(made_from)}.npz"
        if path.exists():
            yield one, _read(path)
        else:
            waiting[task.remote(one.job)] = (one, path)
    finished = _as_they_end(list(waiting))
    for reference in track_progress(finished, doing=doing, unit="runs", total=len(waiting), size=lambda _: 1):
        one, path = waiting[reference]
        result = ray.get(reference)
        _write(path, result)
        yield one, result


def _as_they_end(references: list[ray.ObjectRef]) -> Iterator[ray.ObjectRef]:
    while references:
        (done, *_), references = ray.wait(references)
        yield done


def _write(path: Path, result: Mapping[str, Mapping[str, Any]]) -> None:
    arrays = {f"{name}/{field}": value for name, found in result.items() for field, value in found.items()}
    with atomic_write(path) as file:
        np.savez(file, **arrays)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    with np.load(path) as arrays:
        for name, value in arrays.items():
            checkpoint, field = name.rsplit("/", 1)
            found.setdefault(checkpoint, {})[field] = value
    return found
