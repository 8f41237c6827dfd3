"""What a rule is, and how one is applied to captions: without order, without state, with choices made by hashes."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

Apply = Callable[[str, str, "spacy.tokens.Doc | None"], str | None]
"""(caption, key of its random choices, its parse) -> the caption in other words; None where the rule does not apply."""


@dataclass(frozen=True)
class Rule:
    """One way to put a caption differently.

    Rules of the same name differ in severity only; a greater one makes the choices of a smaller one, and more.
    """

    name: str
    severity: str | None
    """A word; None for a rule that has no degrees."""
    needs_parse: bool
    """Whether it works on a spaCy parse (see `parse_captions`)."""
    describe: str
    """What it does, in a sentence for the reader of a report."""
    apply: Apply

    @property
    def key(self) -> str:
        """`typos-light`; no other rule has it."""
        return self.name if self.severity is None else f"{self.name}-{self.severity}"


def rules_by_key(*rules: Rule) -> dict[str, Rule]:
    """Rules by their key, in their order."""
    by_key = {rule.key: rule for rule in rules}
    assert len(by_key) == len(rules), "two rules with one key"
    return by_key


def available_rules(rules: Iterable[Rule], *, parsed: bool) -> tuple[list[Rule], list[Rule]]:
    """Parts rules into those that can be applied and those that cannot.

    Args:
        rules: any.
        parsed: whether there are parses, which take spaCy and one of its models.

    Returns:
        Those that are available, those that are not.
    """
    rules = list(rules)
    return (
        [rule for rule in rules if parsed or not rule.needs_parse],
        [rule for rule in rules if rule.needs_parse and not parsed],
    )


def parse_captions(captions: Sequence[str], parser: "spacy.language.Language") -> "list[spacy.tokens.Doc]":
    """Parses captions as `rewrite` expects it, each different one once.

    Args:
        captions: any.
        parser: from `waver.knowledge.phrases.load_parser`.
    """
    texts = [_normalised(caption) for caption in captions]
    distinct = list(dict.fromkeys(texts))
    docs = dict(zip(distinct, parser.pipe(distinct), strict=True))
    return [docs[text] for text in texts]


def rewrite(
    captions: Sequence[str], rule: Rule, *, seed: int, docs: "Sequence[spacy.tokens.Doc] | None" = None
) -> list[str | None]:
    """Puts captions differently. What becomes of one depends on itself, the rule and the seed, never on its neighbours.

    Args:
        captions: as they stand in the data set. White space counts for nothing: a run of it is one space in the result.
        rule: of `rewrites.RULES` or `controls.CONTROLS`.
        seed: another one, other choices. Rules that make none do not change.
        docs: from `parse_captions`, one a caption; only rules with `needs_parse` look at them.

    Returns:
        One a caption; None where the rule does not apply or changes nothing.
    """
    assert docs is not None or not rule.needs_parse, f"{rule.key} needs parses: see available_rules"
    assert docs is None or len(docs) == len(captions)
    results: list[str | None] = []
    for row, caption in enumerate(captions):
        text = _normalised(caption)
        doc = docs[row] if docs is not None and rule.needs_parse else None
        assert doc is None or doc.text == text, "a parse of another caption"
        result = rule.apply(text, f"{seed}/{rule.name}/{text}", doc) if text else None
        result = _normalised(result or "")
        results.append(result if result not in ("", text) else None)
    return results


def hash_to_int(key: str) -> int:
    """A random number of 64 bits that `key` alone decides: the same in every process and Python."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def choose(options: Sequence[T], key: str) -> T:
    """One of the options."""
    return options[hash_to_int(key) % len(options)]


def shuffle(items: Sequence[T], key: str) -> list[T]:
    """The items in a random order."""
    return [
        items[place] for place in sorted(range(len(items)), key=lambda place: (hash_to_int(f"{key}/{place}"), place))
    ]


def _normalised(text: str) -> str:
    return " ".join(text.split())
