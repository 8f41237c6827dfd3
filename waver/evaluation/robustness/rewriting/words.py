"""Reads tables of replacement words, and replaces words in a text with correct case and articles."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources

_VOWEL_SOUND = re.compile(
    r"(?!uni|use|usu|uk|euro|ewe|one\b|once)[aeiou]|hour|honest|heir|tv\b|mp3|x-ray", re.IGNORECASE
)


def word_set(words: str) -> frozenset[str]:
    """Returns the set of the words of a text."""
    return frozenset(words.split())


@cache
def load_words(name: str) -> Mapping[str, tuple[str, ...]]:
    """Reads a table of this package: word -> its possible replacements, in lower case.

    A line maps the words on its left to those on its right one by one (`child, children > kid, kids`), or in both directions
    with `<>`. A line without arrow lists phrases that are never changed (`hot dog`). A word on several lines has several
    replacements. `#` starts a comment.
    """
    table: dict[str, list[str]] = {}
    lines = (
        resources.files("waver.evaluation.robustness.rewriting").joinpath(name).read_text(encoding="utf-8").splitlines()
    )
    for line in (line.split("#")[0].strip() for line in lines):
        left, arrow, right = (part.strip() for part in re.split(r"(<>|>|$)", line, maxsplit=1))
        words, others = re.split(r",\s*", left), re.split(r",\s*", right)
        if not arrow:
            table |= {word: [] for word in words if word}
            continue
        assert len(words) == len(others), f"{name}: {line}"
        for word, other in zip(words, others, strict=True):
            table.setdefault(word, []).append(other)
            if arrow == "<>":
                table.setdefault(other, []).append(word)
    return {word: tuple(others) for word, others in table.items()}


@cache
def _finder(name: str) -> re.Pattern[str]:
    """Returns a pattern that matches the words of a table; of overlapping words the longest."""
    words = sorted(load_words(name), key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, words))})(?![\w-])", re.IGNORECASE)


def find_words(text: str, name: str) -> list[re.Match[str]]:
    """Finds the words of a text that a table has replacements for, from left to right."""
    return [found for found in _finder(name).finditer(text) if load_words(name)[found[0].lower()]]


def replace_spans(text: str, replacements: Iterable[tuple[int, int, str]]) -> str:
    """Replaces spans of a text by words.

    Args:
        text: the text.
        replacements: (start, end, word in lower case), without overlaps. The word gets the case of the span that it
            replaces, and an `a` or `an` before it is corrected.
    """
    for start, end, word in sorted(replacements, reverse=True):
        before, old = text[:start], text[start:end]
        if old.isupper() and len(old) > 1:
            word = word.upper()
        elif old[:1].isupper():
            word = word[:1].upper() + word[1:]
        if article := re.search(r"(?<![\w'])(a)(n?) $", before, re.IGNORECASE):
            n = "N" if article[0].strip().isupper() and old.isupper() else "n"
            before = before[: article.end(1)] + (n if _VOWEL_SOUND.match(word) else "") + " "
        text = before + word + text[end:]
    return text
