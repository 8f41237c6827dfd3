"""Matched phrases as the authors of WAVER released them: JSON files, one a split, clip id -> its phrases, best first.

There are two schemas: a list of phrases, and an object with `vocab` (phrases) and `vocab_idx` (their places in the authors'
dictionary). Those dictionaries were made from the captions of all splits, so what is imported is leaky.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from waver.data.annotations.reading import Problems, is_text
from waver.knowledge.phrases import VOCABULARY_SCHEMA
from waver.knowledge.store import MATCHES_SCHEMA, Dictionary, make_dictionary


def read_released(files: Sequence[Path], clip_ids: Sequence[str], num_matches: int) -> tuple[Dictionary, pa.Table]:
    """Reads released files.

    Phrases get ids in the order of the authors' index where the files tell it, else in the order in which they appear.

    Args:
        files: JSON files, together one dictionary.
        clip_ids: of the data set.
        num_matches: phrases that are kept for each clip, at most as many as the files have.

    Returns:
        The dictionary, and the matches (MATCHES_SCHEMA) of the clips in the files.

    Raises:
        AnnotationError: with everything that is wrong, by kind.
    """
    problems, known = Problems(), set(clip_ids)
    phrases_of_clip: dict[str, list[str]] = {}
    index_of_phrase: dict[str, int | None] = {}
    for file in files:
        for clip_id, value in _read(file, problems).items():
            phrases, indices = _phrases(value)
            if phrases is None:
                problems.add(
                    "neither a list of phrases nor an object with vocab and vocab_idx",
                    "is it a file of matched phrases?",
                    f"{clip_id} in {file.name}",
                )
            elif clip_id not in known:
                problems.add(
                    "clip that the data set does not have",
                    "name the files of this data set and split (knowledge.released)",
                    f"{clip_id} in {file.name}",
                )
            elif phrases_of_clip.setdefault(clip_id, phrases) != phrases:
                problems.add("clip with other phrases in another file", "name one of them", clip_id)
            else:
                if len(phrases) < num_matches:
                    problems.add(f"clip with fewer than {num_matches} phrases", "lower knowledge.num_matches", clip_id)
                for phrase, index in zip(phrases, indices, strict=True):
                    if index_of_phrase.setdefault(phrase, index) != index:
                        problems.add(
                            "phrase with two places in the dictionary", "take files of one dictionary", repr(phrase)
                        )
    taken: dict[int, str] = {}
    for phrase, index in index_of_phrase.items():
        if index is not None and taken.setdefault(index, phrase) != phrase:
            problems.add("place for two phrases", "take files of one dictionary", f"{index} in vocab_idx")
    problems.raise_if_any(files[0].parent)

    ordered = sorted(
        index_of_phrase, key=lambda phrase: (index_of_phrase[phrase] is None, index_of_phrase[phrase] or 0)
    )
    id_of_phrase = {phrase: i for i, phrase in enumerate(ordered)}
    columns = [range(len(ordered)), ordered, [None] * len(ordered)]
    dictionary = make_dictionary(
        pa.table(
            [pa.array(c, field.type) for c, field in zip(columns, VOCABULARY_SCHEMA, strict=True)], VOCABULARY_SCHEMA
        ),
        leaky=True,
        files=[file.name for file in files],
    )
    rows = [
        {"clip_id": clip_id, "phrase_ids": [id_of_phrase[phrase] for phrase in phrases[:num_matches]]}
        for clip_id, phrases in phrases_of_clip.items()
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
    """(phrases, their places in the authors' dictionary) of either schema; None for anything else."""
    tells_places = isinstance(value, dict) and value.keys() == {"vocab", "vocab_idx"}
    phrases = value["vocab"] if tells_places else value
    if not isinstance(phrases, list) or not phrases or not all(is_text(phrase) for phrase in phrases):
        return None, []
    indices = value["vocab_idx"] if tells_places else [None] * len(phrases)
    if not isinstance(indices, list) or len(indices) != len(phrases):
        return None, []
    if tells_places and not all(type(i) is int for i in indices):
        return None, []
    return phrases, indices
