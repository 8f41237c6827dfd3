"""Inflects verbs, and looks up transitive verbs of captions by their form."""

from dataclasses import dataclass
from functools import cache
from importlib import resources

_NEVER_DOUBLED = frozenset("wxyh")


@dataclass(frozen=True)
class Verb:
    """The forms of one verb."""

    base: str
    third: str
    """`it cuts`."""
    past: str
    participle: str
    """`it was cut`."""
    gerund: str
    """`cutting`."""


def find_verb(form: str, tag: str) -> Verb | None:
    """Finds the transitive verb that has this form.

    Args:
        form: the form, in lower case.
        tag: its Penn Treebank tag: VB, VBP, VBZ, VBD, VBN or VBG.

    Returns:
        The verb; None if the table has none or several with this form.
    """
    found = _verbs_by_form().get((form, _FORM_OF_TAG.get(tag, "")), ())
    return found[0] if len(found) == 1 else None


_FORM_OF_TAG = {
    "VB": "base",
    "VBP": "base",
    "VBZ": "third",
    "VBD": "past",
    "VBN": "participle",
    "VBG": "gerund",
}


@cache
def _verbs_by_form() -> dict[tuple[str, str], tuple[Verb, ...]]:
    text = (
        resources.files("waver.evaluation.robustness.rewriting")
        .joinpath("passive_verbs.txt")
        .read_text(encoding="utf-8")
    )
    by_form: dict[tuple[str, str], tuple[Verb, ...]] = {}
    for words in (line.split() for line in text.splitlines() if line and not line.startswith("#")):
        verb = inflect(*words)
        for name in set(_FORM_OF_TAG.values()):
            key = (getattr(verb, name), name)
            by_form[key] = (*by_form.get(key, ()), verb)
    return by_form


def inflect(base: str, past: str | None = None, participle: str | None = None) -> Verb:
    """Inflects a verb by spelling rules: stop, stopped, stopping; carry, carries, carried; tie, tying; wash, washes.

    Args:
        base: base form, such as `cut`.
        past: past tense, if irregular.
        participle: past participle, if irregular.
    """
    after_consonant = len(base) > 1 and base[-2] not in "aeiou"
    if base.endswith("y") and after_consonant:
        third, regular = f"{base[:-1]}ies", f"{base[:-1]}ied"
    else:
        third = base + ("es" if base.endswith(("s", "x", "z", "ch", "sh")) else "s")
        regular = base + "d" if base.endswith("e") else double_final_consonant(base) + "ed"
    if base.endswith("ie"):
        gerund = f"{base[:-2]}ying"
    elif base.endswith("e") and not base.endswith(("ee", "oe", "ye")):
        gerund = f"{base[:-1]}ing"
    else:
        gerund = f"{double_final_consonant(base)}ing"
    return Verb(base, third, past or regular, participle or regular, gerund)


def double_final_consonant(base: str) -> str:
    """Doubles the last consonant after a single short vowel: stop, chop, control, but not open."""
    vowels = sum(letter in "aeiou" for letter in base)
    closed = len(base) > 2 and base[-1] not in "aeiou" and base[-1] not in _NEVER_DOUBLED and base[-2] in "aeiou"
    single = closed and vowels - base.count("qu") == 1
    return base + base[-1] if single or base in {"control", "unwrap"} else base
