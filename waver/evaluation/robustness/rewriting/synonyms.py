"""Replaces words by synonyms from a curated table."""

from waver.evaluation.robustness.rewriting.rule import choose, shuffle
from waver.evaluation.robustness.rewriting.words import find_words, load_words, replace_spans

_TABLE = "synonyms.txt"


def synonyms(text: str, key: str, doc: object, *, every: bool) -> str:
    """Replaces one word, or every word, that the table has a synonym for: `a lady is speaking`."""
    found = shuffle(find_words(text, _TABLE), key)
    return replace_spans(
        text,
        (
            (word.start(), word.end(), choose(load_words(_TABLE)[word[0].lower()], f"{key}/{word.start()}"))
            for word in (found if every else found[:1])
        ),
    )
