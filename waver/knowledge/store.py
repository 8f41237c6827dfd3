"""The dictionary of phrases on disk, and what the teacher knows of each clip in its words.

A dictionary is a folder with `phrases.parquet` (phrase_id, phrase, count) and `manifest.json`. Knowledge is a folder too,
which any number of processes may write to at the same time:

    manifest.json             dictionary, teacher, settings, whether test captions leaked into it, whether it is complete
    phrases.parquet           the dictionary, so that the folder can be read by itself
    embeddings/<first>.safetensors   the teacher's embeddings of phrases from that id on
    matches/<block>.parquet   a row a clip: its best phrases with their scores

`leaky` says that captions of other splits than train went into the dictionary; it travels into every result.
"""

import hashlib
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from waver.knowledge.phrases import VOCABULARY_SCHEMA
from waver.tools.errors import WaverError
from waver.tools.files import atomic_write, read_json, write_json
from waver.tools.object_store import ObjectStoreError, display_path, exists, fetch, fetch_folder, list_names

MATCHES_SCHEMA = pa.schema(
    {"clip_id": pa.string(), "phrase_ids": pa.list_(pa.int32()), "scores": pa.list_(pa.float32())}
)
"""Best phrase first; scores are cosines, null where nobody told them."""


class KnowledgeError(WaverError):
    """A dictionary or what was matched with it is not there, damaged, or does not fit."""


@dataclass(frozen=True)
class Dictionary:
    """Phrases, and where they come from."""

    phrases: pa.Table
    """VOCABULARY_SCHEMA."""
    manifest: dict[str, Any]

    @property
    def leaky(self) -> bool:
        """Whether captions of other splits than train went into it."""
        return self.manifest["leaky"]

    @property
    def digest(self) -> str:
        """Short hash of the phrases in their order."""
        return self.manifest["digest"]


def make_dictionary(phrases: pa.Table, *, leaky: bool, **source: Any) -> Dictionary:
    """A dictionary with its manifest.

    Args:
        phrases: VOCABULARY_SCHEMA.
        leaky: whether captions of other splits than train went into it.
        source: what else the manifest should tell.
    """
    text = "\n".join(phrases["phrase"].to_pylist())
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Dictionary(phrases, {"num_phrases": len(phrases), "leaky": leaky, "digest": digest, **source})


def write_dictionary(folder: Path, dictionary: Dictionary) -> None:
    """Writes a dictionary; its manifest comes last."""
    with atomic_write(folder / "phrases.parquet") as file:
        pq.write_table(dictionary.phrases, file)
    write_json(folder / "manifest.json", dictionary.manifest)


def read_dictionary(folder: Path) -> Dictionary:
    """Reads a dictionary.

    Raises:
        KnowledgeError: where there is none.
    """
    manifest = _read_manifest(folder, "dictionary", "waver vocabulary CONFIG")
    fetch(folder / "phrases.parquet")
    try:
        return Dictionary(pq.read_table(folder / "phrases.parquet", schema=VOCABULARY_SCHEMA), manifest)
    except (pa.ArrowException, OSError) as error:
        raise KnowledgeError(
            f"{display_path(folder / 'phrases.parquet')} cannot be read ({error}): delete {display_path(folder)}"
        ) from error


class Knowledge:
    """What is known of the clips, read from its folder as it is now.

    Attributes:
        path: its folder.
        manifest: content of manifest.json.

    Raises:
        KnowledgeError: where there is none.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.manifest = _read_manifest(self.path, "knowledge", "waver match CONFIG")

    @property
    def num_phrases(self) -> int:
        """P, of the dictionary."""
        return self.manifest["dictionary"]["num_phrases"]

    @property
    def leaky(self) -> bool:
        """See `Dictionary.leaky`."""
        return self.manifest["dictionary"]["leaky"]

    @cached_property
    def phrases(self) -> list[str]:
        """The dictionary, by phrase id."""
        return pq.read_table(fetch(self.path / "phrases.parquet"))["phrase"].to_pylist()

    @cached_property
    def matches(self) -> pa.Table:
        """MATCHES_SCHEMA, sorted by clip_id; of a clip matched twice one row, they are the same."""
        files = fetch_folder(self.path / "matches", "*.parquet")
        try:
            tables = [pq.read_table(file, schema=MATCHES_SCHEMA) for file in files]
        except (pa.ArrowException, OSError) as error:
            raise KnowledgeError(
                f"{display_path(self.path / 'matches')} has a file that cannot be read ({error}): delete the file and run "
                "`waver match CONFIG`, which matches its clips again"
            ) from error
        matches = pa.concat_tables([MATCHES_SCHEMA.empty_table(), *tables])
        _, first = np.unique(np.array(matches["clip_id"].to_pylist(), dtype=object), return_index=True)
        return matches.take(first)

    @cached_property
    def _row_of_clip(self) -> dict[str, int]:
        return {clip_id: row for row, clip_id in enumerate(self.matches["clip_id"].to_pylist())}

    @cached_property
    def _phrase_ids(self) -> Int[np.ndarray, "clips num_matches"]:
        return np.array(self.matches["phrase_ids"].to_pylist(), np.int64).reshape(len(self.matches), -1)

    def unknown(self, clip_ids: Sequence[str]) -> list[str]:
        """Those of some clips of which nothing is known."""
        return [clip_id for clip_id in clip_ids if clip_id not in self._row_of_clip]

    def phrase_ids(self, clip_ids: Sequence[str], top_k: int) -> Int[Tensor, "B K"]:
        """The best K = top_k phrases of some clips, in the order asked for."""
        rows = [self._row_of_clip[clip_id] for clip_id in clip_ids]
        return torch.from_numpy(self._phrase_ids[rows, :top_k])

    def embedded(self) -> set[int]:
        """First phrase ids of the parts whose embeddings are there."""
        return {int(Path(name).stem) for name in list_names(self.path / "embeddings", "*.safetensors")}

    def phrase_embeddings(self) -> Float[Tensor, "P D"]:
        """The teacher's embeddings of all phrases, not normalised.

        Raises:
            KnowledgeError: where some are missing.
        """
        files = fetch_folder(self.path / "embeddings", "*.safetensors")
        try:
            parts = [load_file(file)["embeddings"] for file in files]
        except (SafetensorError, OSError) as error:
            raise KnowledgeError(
                f"{display_path(self.path / 'embeddings')} has a file that cannot be read ({error}): delete the file "
                f"and run "
                "`waver match CONFIG`, which embeds its phrases again"
            ) from error
        if sum(map(len, parts)) != self.num_phrases:
            raise KnowledgeError(
                f"{display_path(self.path)} has embeddings of {sum(map(len, parts))} of {self.num_phrases} phrases: run "
                "`waver match CONFIG`, which computes what is missing"
            )
        return torch.cat(parts)

    def summary(self) -> dict[str, Any]:
        """What a result should tell of the knowledge that went into it."""
        names = ("num_phrases", "leaky", "digest")
        return {name: self.manifest["dictionary"][name] for name in names} | {"source": self.manifest["source"]}

    def check_taught(self, checkpoint: Path, learned_from: dict[str, Any] | None) -> None:
        """Checks that a model learned from this very dictionary.

        Args:
            checkpoint: of the model.
            learned_from: the `summary` of what it learned from.

        Raises:
            KnowledgeError: where it was another one.
        """
        theirs = learned_from and learned_from["digest"]
        if theirs != self.summary()["digest"]:
            raise KnowledgeError(
                f"{display_path(checkpoint)} learned from another dictionary ({theirs}) "
                f"than {display_path(self.path)} was matched with "
                f"({self.summary()['digest']}): its phrases would mean something else. Make that dictionary and match "
                "again, or train under another name"
            )


def create_knowledge(folder: Path, dictionary: Dictionary, **settings: Any) -> Knowledge:
    """Makes the folder, or opens the one there if it was made from the same things.

    Args:
        folder: of the knowledge.
        dictionary: its phrases.
        settings: `source`, `teacher`, `num_matches`.

    Raises:
        KnowledgeError: where it was made from others; says from what.
    """
    asked = {"dictionary": dictionary.manifest, **settings}
    if not exists(folder / "manifest.json"):
        for name in ("embeddings", "matches"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "phrases.parquet") as file:
            pq.write_table(dictionary.phrases, file)
        write_json(folder / "manifest.json", {**asked, "complete": False})
    knowledge = Knowledge(folder)
    there = {"dictionary": knowledge.manifest["dictionary"]["digest"]} | {
        name: knowledge.manifest.get(name) for name in settings
    }
    different = [
        f"{name}: {there[name]} there, {value} now"
        for name, value in ({"dictionary": dictionary.digest} | settings).items()
        if there[name] != value
    ]
    if different:
        raise KnowledgeError(
            f"{display_path(folder)} was made from something else ({'; '.join(different)}): "
            f"delete the folder and match again. "
            "Runs that were trained with it can then not be continued"
        )
    if knowledge.manifest["dictionary"] != dictionary.manifest:
        # The same phrases of other captions: what was matched stays as it is, and belongs to these captions now.
        with atomic_write(folder / "phrases.parquet") as file:
            pq.write_table(dictionary.phrases, file)
        write_json(folder / "manifest.json", {**knowledge.manifest, "dictionary": dictionary.manifest})
        knowledge = Knowledge(folder)
    return knowledge


def write_embeddings(folder: Path, first: int, embeddings: Float[Tensor, "p D"]) -> None:
    """Writes the embeddings of the phrases from id `first` on."""
    with atomic_write(folder / "embeddings" / f"{first:09d}.safetensors") as file:
        file.write(save({"embeddings": embeddings.contiguous().cpu()}))


def write_matches(folder: Path, matches: pa.Table) -> None:
    """Writes what is known of some clips (MATCHES_SCHEMA)."""
    with atomic_write(folder / "matches" / f"{time.time_ns():020d}-{uuid.uuid4().hex[:12]}.parquet") as file:
        pq.write_table(matches.cast(MATCHES_SCHEMA), file)


def finish(folder: Path) -> Knowledge:
    """Notes that everything that was asked for is there."""
    knowledge = Knowledge(folder)
    write_json(folder / "manifest.json", {**knowledge.manifest, "complete": True, "num_clips": len(knowledge.matches)})
    return Knowledge(folder)


def _read_manifest(folder: Path, what: str, remedy: str) -> dict[str, Any]:
    try:
        return read_json(folder / "manifest.json")
    except FileNotFoundError:
        raise KnowledgeError(f"there is no {what} in {display_path(folder)}: run `{remedy}` first") from None
    except ObjectStoreError:
        raise
    except (OSError, ValueError) as error:
        raise KnowledgeError(
            f"{display_path(folder / 'manifest.json')} cannot be read ({error}): delete the folder and run `{remedy}`"
        ) from None
