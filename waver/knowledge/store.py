"""Dictionaries of phrases, and knowledge: the phrases that the teacher matched with each clip. Both are folders on disk.

A dictionary has `phrases.parquet` (phrase_id, phrase, count) and `manifest.json`. Knowledge has the files below; any number
of processes may write them at the same time:

    manifest.json                    dictionary, teacher, settings, whether it is leaky, whether it is complete
    phrases.parquet                  a copy of the dictionary, so that the folder is self-contained
    embeddings/<first>.safetensors   the embeddings of consecutive phrases, from phrase id <first>, by the student's own
                                     backbone before training
    teacher/<first>.safetensors      the same by the teacher, if that is another backbone (`knowledge.teacher`)
    clip_mean.safetensors            the teacher's mean training clip, if matches are centred (`knowledge.matching`)
    matches/<block>.parquet          one row per clip: its best phrases with their scores

Nothing is lost if two commands match the same clips, but they do the work twice; `waver match` therefore takes the lock of
the folder (`waver.tools.lock`).

A dictionary is `leaky` if captions of other splits than train went into it; every result that uses it is labelled so.
"""

import copy
import hashlib
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor

from waver.knowledge.control import Control, ControlKind
from waver.knowledge.errors import KnowledgeError
from waver.knowledge.phrase_table import load_tensor, read_phrase_table
from waver.knowledge.phrases import VOCABULARY_SCHEMA
from waver.tools.files import atomic_write, read_manifest, write_json
from waver.tools.object_store import display_path, exists, fetch, fetch_folder, list_names

MATCHES_SCHEMA = pa.schema(
    {"clip_id": pa.string(), "phrase_ids": pa.list_(pa.int32()), "scores": pa.list_(pa.float32())}
)
"""Best phrase first; scores are cosines, less the mean of their phrase if matches are centred; null for released matches,
which have none."""
Space = Literal["student", "teacher"]
"""Whose embeddings of phrases: the student's own backbone's before training, or the frozen teacher's. Both are the same if
the teacher is the student's own backbone."""


MEAN_FILE = "clip_mean.safetensors"


@dataclass(frozen=True)
class Dictionary:
    """Phrases, and a manifest with their origin."""

    phrases: pa.Table
    """VOCABULARY_SCHEMA."""
    manifest: dict[str, Any]

    @property
    def leaky(self) -> bool:
        """Whether captions of other splits than train were used."""
        return self.manifest["leaky"]

    @property
    def digest(self) -> str:
        """Short hash of the phrases, in order."""
        return self.manifest["digest"]


def build_dictionary(phrases: pa.Table, *, leaky: bool, **source: Any) -> Dictionary:
    """Builds a dictionary with its manifest.

    Args:
        phrases: table of VOCABULARY_SCHEMA.
        leaky: whether captions of other splits than train were used.
        source: further entries of the manifest, such as the origin of the phrases.
    """
    text = "\n".join(phrases["phrase"].to_pylist())
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Dictionary(phrases, {"num_phrases": len(phrases), "leaky": leaky, "digest": digest, **source})


def write_dictionary(folder: Path, dictionary: Dictionary) -> None:
    """Writes a dictionary; its manifest last, so that a folder with a manifest is complete."""
    with atomic_write(folder / "phrases.parquet") as file:
        pq.write_table(dictionary.phrases, file)
    write_json(folder / "manifest.json", dictionary.manifest)


def read_dictionary(folder: Path) -> Dictionary:
    """Reads a dictionary.

    Raises:
        KnowledgeError: if there is none in the folder, or it is damaged.
    """
    manifest = read_manifest(folder, what="dictionary", command="waver vocabulary CONFIG", error=KnowledgeError)
    fetch(folder / "phrases.parquet")
    try:
        return Dictionary(pq.read_table(folder / "phrases.parquet", schema=VOCABULARY_SCHEMA), manifest)
    except (pa.ArrowException, OSError) as error:
        raise KnowledgeError(
            f"{display_path(folder / 'phrases.parquet')} cannot be read ({error}): delete {display_path(folder)}"
        ) from error


class Knowledge:
    """The phrases of each clip and the embeddings of all phrases, read from their folder as it is now.

    Args:
        path: the folder.
        control: gives clips the phrases of other clips; None for their own.

    Attributes:
        path, control: as given.
        manifest: content of manifest.json.

    Raises:
        KnowledgeError: if there is no knowledge in the folder, or it is damaged.
    """

    def __init__(self, path: Path | str, control: Control | None = None):
        self.path, self.control = Path(path), control
        self.manifest = read_manifest(self.path, what="knowledge", command="waver match CONFIG", error=KnowledgeError)

    @property
    def num_phrases(self) -> int:
        """P, the number of phrases in the dictionary."""
        return self.manifest["dictionary"]["num_phrases"]

    @property
    def leaky(self) -> bool:
        """Whether the dictionary is leaky, see `Dictionary.leaky`."""
        return self.manifest["dictionary"]["leaky"]

    @property
    def control_kind(self) -> ControlKind:
        """Kind of the control."""
        return self.control.kind if self.control else "none"

    @cached_property
    def phrases(self) -> list[str]:
        """All phrases of the dictionary, by phrase id."""
        return pq.read_table(fetch(self.path / "phrases.parquet"))["phrase"].to_pylist()

    @cached_property
    def matches(self) -> pa.Table:
        """Table of MATCHES_SCHEMA, sorted by clip_id; one row per clip (rows of a clip matched twice are equal)."""
        files = fetch_folder(self.path / "matches", "*.parquet")
        try:
            tables = [pq.read_table(file, schema=MATCHES_SCHEMA) for file in files]
        except (pa.ArrowException, OSError) as error:
            raise KnowledgeError(
                f"{display_path(self.path / 'matches')} has a file that cannot be read ({error}): delete the file and run "
                "`waver match CONFIG`, which matches its clips again"
            ) from error
        for file, table in zip(files, tables, strict=True):
            if pc.any(pc.invert(pc.is_finite(pc.list_flatten(table["scores"])))).as_py():
                raise KnowledgeError(
                    f"{display_path(file)} has scores that are NaN or infinite, and its phrases mean nothing: delete the "
                    "file and run `waver match CONFIG`, which matches its clips again"
                )
        matches = pa.concat_tables([MATCHES_SCHEMA.empty_table(), *tables])
        _, first = np.unique(np.array(matches["clip_id"].to_pylist(), dtype=object), return_index=True)
        return matches.take(first)

    @cached_property
    def _row_of_clip(self) -> dict[str, int]:
        return {clip_id: row for row, clip_id in enumerate(self.matches["clip_id"].to_pylist())}

    @cached_property
    def _phrase_ids(self) -> Int[np.ndarray, "clips num_matches"]:
        return np.array(self.matches["phrase_ids"].to_pylist(), np.int64).reshape(len(self.matches), -1)

    def controlled(self, control: Control | None) -> "Knowledge":
        """Returns the same knowledge under a control; None for none."""
        knowledge = copy.copy(self)
        knowledge.control = control
        return knowledge

    def unmatched_clips(self, clip_ids: Sequence[str]) -> list[str]:
        """Returns the clips that have no phrases."""
        return [clip_id for clip_id in clip_ids if clip_id not in self._row_of_clip]

    def described(self, clip_ids: Sequence[str]) -> list[str]:
        """Returns the clips whose phrases these clips get: themselves, or under a control others."""
        return [self.control.phrases_of[clip_id] for clip_id in clip_ids] if self.control else list(clip_ids)

    def phrase_ids(self, clip_ids: Sequence[str], top_k: int) -> Int[Tensor, "B K"]:
        """Returns the best K = top_k phrases of each clip, in the order of clip_ids; under a control, those of others."""
        rows = [self._row_of_clip[clip_id] for clip_id in self.described(clip_ids)]
        return torch.from_numpy(self._phrase_ids[rows, :top_k])

    @property
    def is_centred(self) -> bool:
        """Whether each phrase's mean score over the training clips was subtracted before the best were chosen."""
        return self.manifest.get("matching") == "centred"

    def embeddings_folder(self, space: Space) -> Path:
        """Returns the folder with the embeddings of phrases in a space."""
        has_other_teacher = "student" in self.manifest
        return self.path / ("teacher" if space == "teacher" and has_other_teacher else "embeddings")

    def embedded_parts(self, space: Space = "student") -> set[int]:
        """Returns the first phrase id of each part whose embeddings are stored."""
        return {int(Path(name).stem) for name in list_names(self.embeddings_folder(space), "*.safetensors")}

    def phrase_embeddings(self, space: Space = "student") -> Float[Tensor, "P D"]:
        """Reads the embeddings of all phrases, not normalised.

        Raises:
            KnowledgeError: if some are missing or damaged, or a value is NaN or infinite.
        """
        return read_phrase_table(self.embeddings_folder(space), self.phrases)

    def clip_mean(self) -> Float[Tensor, " D"] | None:
        """Reads the teacher's mean training clip, which matching subtracts from clips; None if matches are cosines.

        Raises:
            KnowledgeError: if it is missing or damaged.
        """
        if not self.is_centred:
            return None
        if not exists(self.path / MEAN_FILE):
            raise KnowledgeError(
                f"{display_path(self.path / MEAN_FILE)} is missing: delete {display_path(self.path)} and run "
                "`waver match CONFIG`, since other matches than those with this mean cannot be compared"
            )
        return load_tensor(fetch(self.path / MEAN_FILE), "clip_mean", "computes it")

    def summary(self) -> dict[str, Any]:
        """Returns the entries about this knowledge that results and checkpoints store."""
        names = ("num_phrases", "leaky", "digest")
        summary = {name: self.manifest["dictionary"][name] for name in names} | {"source": self.manifest["source"]}
        return summary | (self.control.summary() if self.control else {})

    def check_same_dictionary(self, checkpoint: Path, learned_from: dict[str, Any] | None) -> None:
        """Checks that a model was trained with the dictionary of this knowledge and the constant phrases of its control.

        Args:
            checkpoint: folder of the model's checkpoint.
            learned_from: `summary` of the knowledge that it was trained with; None for none.

        Raises:
            KnowledgeError: if it was trained with another dictionary, or with the phrases of another clip for all clips.
        """
        trained_with = learned_from and learned_from["digest"]
        if trained_with != self.summary()["digest"]:
            raise KnowledgeError(
                f"{display_path(checkpoint)} learned from another dictionary ({trained_with}) than "
                f"{display_path(self.path)} was matched with ({self.summary()['digest']}), so its phrase ids mean other "
                "phrases. Build that dictionary and match again, or train under another name"
            )
        learned, now = ((summary or {}).get("constant_clip") for summary in (learned_from, self.summary()))
        if learned and now and learned != now:
            raise KnowledgeError(
                f"{display_path(checkpoint)} learned with the phrases of {learned} for all clips (knowledge.control = "
                f"constant), but the training clips are others now, and those of {now} would be used: evaluate it with the "
                "captions and clips of its training"
            )


def create_knowledge(folder: Path, dictionary: Dictionary, **settings: Any) -> Knowledge:
    """Creates the folder of knowledge, or opens an existing one with the same dictionary and settings.

    Args:
        folder: folder of the knowledge.
        dictionary: its phrases.
        settings: kept in the manifest: `source`, `teacher` (digest of its weights), `num_matches`; `student` (digest of its
            weights) if the teacher is another; `matching` if it is not cosine.

    Raises:
        KnowledgeError: if the folder exists with another dictionary or other settings; the message has both.
    """
    asked = {"dictionary": dictionary.manifest, **settings}
    if not exists(folder / "manifest.json"):
        for name in ("embeddings", "matches", *(["teacher"] if "student" in settings else [])):
            (folder / name).mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "phrases.parquet") as file:
            pq.write_table(dictionary.phrases, file)
        write_json(folder / "manifest.json", {**asked, "complete": False})
    knowledge = Knowledge(folder)
    existing = {"dictionary": knowledge.manifest["dictionary"]["digest"]} | {
        name: knowledge.manifest.get(name) for name in settings
    }
    different = [
        f"{name}: {existing[name]} in the folder, {value} now"
        for name, value in ({"dictionary": dictionary.digest} | settings).items()
        if existing[name] != value
    ]
    if different:
        raise KnowledgeError(
            f"{display_path(folder)} was made from something else ({'; '.join(different)}): "
            "delete the folder and match again. Runs that were trained with it can then not be continued"
        )
    if knowledge.manifest["dictionary"] != dictionary.manifest:
        # The same phrases, built from other captions: the matches stay valid and now belong to these captions.
        with atomic_write(folder / "phrases.parquet") as file:
            pq.write_table(dictionary.phrases, file)
        write_json(folder / "manifest.json", {**knowledge.manifest, "dictionary": dictionary.manifest})
        knowledge = Knowledge(folder)
    return knowledge


def write_embeddings(folder: Path, first: int, embeddings: Float[Tensor, "p D"], *, name: str = "embeddings") -> None:
    """Writes the embeddings of p consecutive phrases, from phrase id `first`; `name` is that of their folder."""
    with atomic_write(folder / name / f"{first:09d}.safetensors") as file:
        file.write(save({"embeddings": embeddings.contiguous().cpu()}))


def write_clip_mean(folder: Path, mean: Float[Tensor, " D"]) -> None:
    """Writes the teacher's mean training clip, see `Knowledge.clip_mean`."""
    with atomic_write(folder / MEAN_FILE) as file:
        file.write(save({"clip_mean": mean.contiguous().cpu()}))


def write_matches(folder: Path, matches: pa.Table) -> None:
    """Writes the phrases of some clips, a table of MATCHES_SCHEMA, as a new block."""
    with atomic_write(folder / "matches" / f"{time.time_ns():020d}-{uuid.uuid4().hex[:12]}.parquet") as file:
        pq.write_table(matches.cast(MATCHES_SCHEMA), file)


def mark_complete(folder: Path) -> Knowledge:
    """Marks knowledge as complete in its manifest."""
    knowledge = Knowledge(folder)
    write_json(folder / "manifest.json", {**knowledge.manifest, "complete": True, "num_clips": len(knowledge.matches)})
    return Knowledge(folder)
