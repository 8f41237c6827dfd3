"""Imports matched phrases as the authors of WAVER released them: JSON files, one per split, clip id -> phrases, best first.

There are two schemas: a list of phrases, and an object with `vocab` (phrases) and `vocab_idx` (their indices in the authors'
dictionary). The authors built their dictionaries from the captions of all splits, so the imported one is leaky.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from waver.data.annotations.reading import Problems, is_text
from waver.knowledge.phrases import VOCABULARY_SCHEMA
from waver.knowledge.store import MATCHES_SCHEMA, Dictionary, build_dictionary


def read_released(files: Sequence[Path], clip_ids: Sequence[str], num_matches: int) -> tuple[Dictionary, pa.Table]:
    """Reads released files.

    Phrase ids follow the authors' indices; phrases without index come after them, in order of appearance.

    Args:
        files: JSON files that share one dictionary.
        clip_ids: clips of the data set.
        num_matches: number of phrases to keep for each clip, at most as many as the files have.

    Returns:
        The dictionary, and a table (MATCHES_SCHEMA) of the clips in the files.

    Raises:
        AnnotationError: if a file does not fit; lists every kind of problem.
    """
    problems, released, known = Problems(), _Released(), set(clip_ids)
    for file in files:
        for clip_id, value in _read(file, problems).items():
            phrases, indices = _phrases(value)
            place = f"{clip_id} in {file.name}"
            if phrases is None:
                problems.add(
                    "neither a list of phrases nor an object with vocab and vocab_idx",
                    "is it a file of matched phrases?",
                    place,
                )
            elif clip_id not in known:
                problems.add(
                    "clip that the data set does not have",
                    "name the files of this data set and split (knowledge.released)",
                    place,
                )
            else:
                released.add(clip_id, phrases, indices, num_matches, problems)
    released.check_indices(problems)
    problems.raise_if_any(files[0].parent)
    return _tables(released, [file.name for file in files], num_matches)


@dataclass
class _Released:
    """Content of released files."""

    phrases_of_clip: dict[str, list[str]] = field(default_factory=dict)
    index_of_phrase: dict[str, int | None] = field(default_factory=dict)
    """Phrase -> its index in the authors' dictionary; None if the files have no indices."""

    def add(
        self, clip_id: str, phrases: list[str], indices: Sequence[int | None], num_matches: int, problems: Problems
    ) -> None:
        """Adds the phrases of a clip; notes contradictions with what was added before."""
        if self.phrases_of_clip.setdefault(clip_id, phrases) != phrases:
            problems.add("clip with other phrases in another file", "name one of them", clip_id)
            return
        if len(phrases) < num_matches:
            problems.add(f"clip with fewer than {num_matches} phrases", "lower knowledge.num_matches", clip_id)
        for phrase, index in zip(phrases, indices, strict=True):
            if self.index_of_phrase.setdefault(phrase, index) != index:
                problems.add("phrase with two places in the dictionary", "take files of one dictionary", repr(phrase))

    def check_indices(self, problems: Problems) -> None:
        """Notes indices that belong to two phrases."""
        phrase_of_index: dict[int, str] = {}
        for phrase, index in self.index_of_phrase.items():
            if index is not None and phrase_of_index.setdefault(index, phrase) != phrase:
                problems.add("place for two phrases", "take files of one dictionary", f"{index} in vocab_idx")


def _tables(released: _Released, names: list[str], num_matches: int) -> tuple[Dictionary, pa.Table]:
    """Builds the dictionary and the table of matches."""
    index_of = released.index_of_phrase
    ordered = sorted(index_of, key=lambda phrase: (index_of[phrase] is None, index_of[phrase] or 0))
    id_of_phrase = {phrase: i for i, phrase in enumerate(ordered)}
    columns = [range(len(ordered)), ordered, [None] * len(ordered)]
    arrays = [pa.array(column, item.type) for column, item in zip(columns, VOCABULARY_SCHEMA, strict=True)]
    dictionary = build_dictionary(pa.table(arrays, VOCABULARY_SCHEMA), leaky=True, files=names)
    rows = [
        {"clip_id": clip_id, "phrase_ids": [id_of_phrase[phrase] for phrase in phrases[:num_matches]]}
        for clip_id, phrases in released.phrases_of_clip.items()
    ]
    return dictionary, pa.Table.from_pylist(rows, MATCHES_SCHEMA)


def _read(file: Path, problems: Problems) -> dict[str, Any]:
    try:
        content = json.loads(file.expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.add("file that cannot be read", "knowledge.released names JSON files", f"{file} ({error})")
        return {}
    if not isinstance(content, dict):
        problems.add("file without clips", "it should map clip ids to phrases", file)
        return {}
    return content


def _phrases(value: Any) -> tuple[list[str] | None, list[int | None]]:
    """Returns phrases and their indices in the authors' dictionary, of either schema; (None, []) for anything else."""
    has_indices = isinstance(value, dict) and value.keys() == {"vocab", "vocab_idx"}
    phrases = value["vocab"] if has_indices else value
    if not isinstance(phrases, list) or not phrases or not all(is_text(phrase) for phrase in phrases):
        return None, []
    indices: Any = value["vocab_idx"] if has_indices else [None] * len(phrases)
    if not isinstance(indices, list) or len(indices) != len(phrases):
        return None, []
    if has_indices and not all(type(i) is int for i in indices):
        return None, []
    return phrases, indices
