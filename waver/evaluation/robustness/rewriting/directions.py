"""Replaces a direction, place or change by its opposite: left and right, into and out of, opens and closes."""

import re
from functools import cache

from waver.evaluation.robustness.rewriting.rule import choose
from waver.evaluation.robustness.rewriting.words import replace_spans

_THING = (
    r"(?! the way\b)(?= (?:a|an|the|his|her|its|their|my|your|some|two|three|one|another|both|it|him|them|me|us)\b)"
)
_OWN = r"(?:the|his|her|its|their|my|your|our)"
_CLOTHES = (
    r"(?= (?:a |his |her |the |their )?(?:\w+ )?"
    r"(?:hat|jacket|shirt|shoes|coat|glasses|sunglasses|mask|gloves|helmet|makeup|pants|dress)\b)"
)
_END = r"(?=$|[.,;!?]| (?:of|and|side|to|with|while|then)\b)"
_MOTION = (
    r"\b(?:(?:walk|runn?|climb|go|mov|driv|rid|crawl|jump|look|fl(?:y|i)|swimm?|slid|roll|hik|pann?|tilt|point|hopp?|ski|"
    r"skat|pac)(?:e|s|es|ing|ed)?|went|ran|drove|rode|flew|swam)"
)
_FROM_OR_TO = r"\b(?:pour|walk|run|jump|climb|div|crawl|com|step|fall|get|go|swim|fly|hop|mov|driv|pull|leap|rid)\w* "
_WITHIN = r"(?:(?!and\b|then\b)\w+ ){0,3}?"
# "Up the street" has no opposite in meaning: it need not go upwards.
_LEVEL = (
    r"(?:a|an|the|some) (?:[\w-]+ ){0,3}?(?:roads?|streets?|paths?|tracks?|court|field|hall|hallway|sidewalk|aisle|runway|"
    r"river|lane|trail|beach|corridor|highway|alley|line)\b"
)

_CONTEXTS: tuple[tuple[str, str, str], ...] = (
    ("left to right", "right to left", r"\b(?P<word>WORD)\b"),
    ("left", "right", rf"\b(?:to|on|from|at|towards?) {_OWN} (?P<word>WORD){_END}"),
    ("left", "right", r"\b(?P<word>WORD)(?= (?:hand|side|arm|foot|leg|eye|ear|shoulder|turn|corner|edge|lane)\b)"),
    ("left", "right", rf"\b(?:turn|mov|look|go|pann?)(?:s|es|ed|ing)? (?P<word>WORD)(?! of\b){_END}"),
    ("up", "down", rf"{_MOTION} (?P<word>WORD)(?=$|[.,;!?]| (?:a|an|the|some|from|at|towards?)\b)(?! {_LEVEL})"),
    ("up", "down", r"\b(?P<word>WORD)(?= (?:a|the|some) (?:\w+ )?(?:stairs?|steps|hill|ladder|slope|ramp)\b)"),
    ("upstairs", "downstairs", r"\b(?P<word>WORD)\b"),
    ("uphill", "downhill", r"\b(?P<word>WORD)\b"),
    ("upwards", "downwards", r"\b(?P<word>WORD)\b"),
    ("upward", "downward", r"\b(?P<word>WORD)\b"),
    ("forwards", "backwards", r"\b(?P<word>WORD)\b"),
    ("forward", "backward", r"\b(?P<word>WORD)\b"),
    ("towards", "away from", rf"\b(?P<word>WORD)\b{_THING}"),
    ("into", "out of", rf"{_FROM_OR_TO}{_WITHIN}(?P<word>WORD){_THING}"),
    ("onto", "off", rf"\b(?:jump|climb|step|fall|get|leap|hop)\w* (?P<word>WORD){_THING}"),
    ("opens", "closes", rf"\b(?P<word>WORD){_THING}"),
    ("opening", "closing", rf"\b(?P<word>WORD){_THING}"),
    ("enters", "leaves", rf"\b(?P<word>WORD){_THING}"),
    ("entering", "leaving", rf"\b(?P<word>WORD){_THING}"),
    ("pushes", "pulls", rf"\b(?P<word>WORD){_THING}"),
    ("pushing", "pulling", rf"\b(?P<word>WORD){_THING}"),
    ("lifts", "lowers", rf"\b(?P<word>WORD){_THING}"),
    ("lifting", "lowering", rf"\b(?P<word>WORD){_THING}"),
    ("raises", "lowers", rf"\b(?P<word>WORD){_THING}"),
    ("raising", "lowering", rf"\b(?P<word>WORD){_THING}"),
    ("loads", "unloads", rf"\b(?P<word>WORD){_THING}"),
    ("loading", "unloading", rf"\b(?P<word>WORD){_THING}"),
    ("wraps", "unwraps", rf"\b(?P<word>WORD){_THING}"),
    ("wrapping", "unwrapping", rf"\b(?P<word>WORD){_THING}"),
    ("turns on", "turns off", rf"\b(?P<word>WORD){_THING}(?! (?:\w+ )?(?:side|back|other)\b)"),
    ("puts on", "takes off", rf"\b(?P<word>WORD){_CLOTHES}"),
    ("putting on", "taking off", rf"\b(?P<word>WORD){_CLOTHES}"),
    ("before", "after", r"\b(?P<word>WORD)(?= \w+ing\b| (?:he|she|it|they)\b)"),
    ("in front of", "behind", rf"(?<!from )\b(?P<word>WORD){_THING}"),
    ("above", "below", rf"\b(?P<word>WORD){_THING}"),
    ("on top of", "under", rf"\b(?P<word>WORD){_THING}"),
    ("inside", "outside", rf"\b(?P<word>WORD){_THING}"),
)  # fmt: skip
"""(word, opposite, pattern of the context): `WORD` in the pattern stands for either of the two."""


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple(
        (re.compile(context.replace("WORD", word), re.IGNORECASE), other)
        for first, second, context in _CONTEXTS
        for word, other in ((first, second), (second, first))
    )


def swapped_direction(text: str, key: str, doc: object) -> str | None:
    """Replaces one word by its opposite if the context settles its sense: `a man climbs down a ladder`."""
    # If the caption has both opposites, replacing one would need to replace the other.
    found = {
        match.span("word"): other
        for pattern, other in _patterns()
        for match in pattern.finditer(text)
        if not re.search(rf"\b{other}\b", text, re.IGNORECASE)
    }
    if not found:
        return None
    start, end = choose(sorted(found), key)
    return replace_spans(text, [(start, end, found[start, end])])
