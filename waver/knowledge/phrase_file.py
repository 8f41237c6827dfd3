"""Reads a dictionary from a text file with a phrase on each line, as `vocabulary.file` names it."""

from collections import Counter
from pathlib import Path

import pyarrow as pa

from waver.knowledge.errors import KnowledgeError
from waver.knowledge.phrases import VOCABULARY_SCHEMA
from waver.tools.object_store import display_path, fetch


def read_phrases(path: Path) -> pa.Table:
    """Reads the phrases of a file, in its order; spaces around a phrase and empty lines do not count.

    Returns:
        A table of VOCABULARY_SCHEMA with each phrase once; its count is the number of its lines.

    Raises:
        KnowledgeError: if the file is missing, is not UTF-8, or has no phrase.
    """
    try:
        text = fetch(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise KnowledgeError(f"vocabulary.file = {display_path(path)} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise KnowledgeError(
            f"vocabulary.file = {display_path(path)} cannot be read as UTF-8 text ({error}): write a phrase on each line"
        ) from error
    counts = Counter(line.strip() for line in text.splitlines() if line.strip())
    if not counts:
        raise KnowledgeError(f"vocabulary.file = {display_path(path)} has no phrase: write a phrase on each line")
    return pa.table([range(len(counts)), list(counts), list(counts.values())], names=VOCABULARY_SCHEMA.names).cast(
        VOCABULARY_SCHEMA
    )
