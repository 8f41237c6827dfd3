"""Defines rules and applies them to captions. Random choices come from hashes: results do not depend on order or process."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import spacy.language
    import spacy.tokens

T = TypeVar("T")

Apply = Callable[[str, str, "spacy.tokens.Doc | None"], str | None]
"""(caption, key of random choices, parse) -> rewritten caption; None if the rule does not apply."""


@dataclass(frozen=True)
class Rule:
    """One way to rewrite a caption.

    Rules of the same name differ in severity only; a higher severity includes the changes of a lower one.
    """

    family: str
    """Kind of change, such as typing mistakes, in words of a report."""
    name: str
    severity: str | None
    """Name of the severity; None for a rule without severities."""
    needs_parse: bool
    """Whether the rule needs a spaCy parse (see `parse_captions`)."""
    describe: str
    """Description for the reader of a report."""
    apply: Apply

    @property
    def key(self) -> str:
        """Unique name of the rule, such as `typos-light`."""
        return self.name if self.severity is None else f"{self.name}-{self.severity}"


def rules_by_key(*rules: Rule) -> dict[str, Rule]:
    """Returns key -> rule, in the given order."""
    by_key = {rule.key: rule for rule in rules}
    assert len(by_key) == len(rules), "two rules with one key"
    return by_key


def available_rules(rules: Iterable[Rule], *, parsed: bool) -> tuple[list[Rule], list[Rule]]:
    """Splits rules into those that can be applied and those that cannot.

    Args:
        rules: the rules.
        parsed: whether parses are available, which need spaCy and one of its models.

    Returns:
        The rules that can be applied, and those that cannot.
    """
    rules = list(rules)
    return (
        [rule for rule in rules if parsed or not rule.needs_parse],
        [rule for rule in rules if rule.needs_parse and not parsed],
    )


def parse_captions(captions: Sequence[str], parser: "spacy.language.Language") -> "list[spacy.tokens.Doc]":
    """Parses captions for `rewrite`; parses equal captions once.

    Args:
        captions: the captions.
        parser: spaCy pipeline from `waver.knowledge.phrases.load_parser`.
    """
    texts = [_normalised(caption) for caption in captions]
    distinct = list(dict.fromkeys(texts))
    docs = dict(zip(distinct, parser.pipe(distinct), strict=True))
    return [docs[text] for text in texts]


def rewrite(
    captions: Sequence[str], rule: Rule, *, seed: int, docs: "Sequence[spacy.tokens.Doc] | None" = None
) -> list[str | None]:
    """Rewrites captions by a rule. Each result depends only on the caption, the rule and the seed.

    Args:
        captions: the captions. A run of white space counts as one space.
        rule: of `rewrites.RULES` or `controls.CONTROLS`.
        seed: seed of the random choices; rules without random choices ignore it.
        docs: parses from `parse_captions`, one per caption; only used by rules with `needs_parse`.

    Returns:
        One text per caption; None if the rule does not apply or changes nothing.
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
    """Returns a pseudo-random 64-bit number that depends only on `key`: the same in every process and Python version."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def choose(options: Sequence[T], key: str) -> T:
    """Returns a pseudo-random one of the options."""
    return options[hash_to_int(key) % len(options)]


def shuffle(items: Sequence[T], key: str) -> list[T]:
    """Returns the items in a pseudo-random order."""
    return [
        items[place] for place in sorted(range(len(items)), key=lambda place: (hash_to_int(f"{key}/{place}"), place))
    ]


def _normalised(text: str) -> str:
    return " ".join(text.split())
