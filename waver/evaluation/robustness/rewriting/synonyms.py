"""Words for which a curated table has another word of the same sense."""

from waver.evaluation.robustness.rewriting.rule import choose, shuffle
from waver.evaluation.robustness.rewriting.words import find_words, load_words, replace_spans

_TABLE = "synonyms.txt"


def synonyms(text: str, key: str, doc: object, *, every: bool) -> str:
    """`a lady is speaking`: one word, or every word of the table, gives way to another."""
    found = shuffle(find_words(text, _TABLE), key)
    return replace_spans(
        text,
        (
            (word.start(), word.end(), choose(load_words(_TABLE)[word[0].lower()], f"{key}/{word.start()}"))
            for word in (found if every else found[:1])
        ),
    )
