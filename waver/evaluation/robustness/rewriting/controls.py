"""Control rules, which keep most words of a caption and change its meaning: a model should retrieve another clip.

They do not measure robustness to style, and are reported apart from the rules of `rewrites`.
"""

import re
from typing import TYPE_CHECKING

from waver.evaluation.robustness.rewriting.directions import swapped_direction
from waver.evaluation.robustness.rewriting.rule import Rule, choose, rules_by_key, shuffle
from waver.evaluation.robustness.rewriting.syntax import agrees, root_of, sentence_tokens
from waver.evaluation.robustness.rewriting.verbs import find_verb, inflect
from waver.evaluation.robustness.rewriting.words import find_words, load_words, replace_spans, word_set

if TYPE_CHECKING:
    import spacy.tokens

_EXCHANGES = "exchanges.txt"
_GENDERED = re.compile(r"\b(?:he|she|his|her|hers|him|himself|herself)\b", re.IGNORECASE)
_PEOPLE = word_set("man men woman women boy boys girl girls gentleman gentlemen lady ladies guy guys")
_DENIED = re.compile(r"\b(?:not|no|never|without|nobody|nothing|cannot|don t|doesn t)\b|n't\b", re.IGNORECASE)
_AUXILIARIES = word_set(
    """
    is are was were am can could will would shall should may might must has have had do does did
    """
)


def negation(text: str, key: str, doc: "spacy.tokens.Doc") -> str | None:
    """Negates the verb of the sentence: `a man is not playing`."""
    tokens = [] if _DENIED.search(text) else sentence_tokens(doc)
    if not tokens:
        return None
    verb = root_of(tokens)
    if verb.pos_ == "NOUN":  # a man playing a guitar
        verbs = [child for child in verb.rights if child.dep_ == "acl" and child.tag_ == "VBG"]
        return _replace_token(text, verbs[0], f"not {verbs[0].text}") if len(verbs) == 1 else None
    if not any(child.dep_ in {"nsubj", "nsubjpass", "expl"} for child in verb.lefts):
        return None
    auxiliaries = [child for child in verb.lefts if child.dep_ in {"aux", "auxpass"}]
    if not auxiliaries and (verb.pos_ == "AUX" or verb.lower_ in {"is", "are", "was", "were"}):
        auxiliaries = [verb]
    if auxiliaries:
        first = auxiliaries[0]
        return _replace_token(text, first, f"{first.text} not") if first.lower_ in _AUXILIARIES else None
    # "does not pick up a ball and throws it": the coordinated verb would have to change as well.
    if verb.pos_ != "VERB" or any(child.dep_ in {"conj", "cc"} for child in verb.children):
        return None
    base = _base_form(verb)
    subject = next(child for child in verb.lefts if child.dep_ in {"nsubj", "nsubjpass", "expl"})
    if base is None or not agrees(verb, subject):
        return None
    # "burgers showcased" may be burgers that are shown.
    if verb.tag_ == "VBD" and subject.left_edge.pos_ not in {"DET", "PRON", "PROPN", "NUM"}:
        return None
    if any(child.dep_ == "advmod" for child in verb.lefts) or any(token.lower_ == "then" for token in tokens):
        return None
    return _replace_token(text, verb, f"{_DO[verb.tag_]} not {base}")


_DO = {"VBZ": "does", "VBP": "do", "VBD": "did"}


def _base_form(verb: "spacy.tokens.Token") -> str | None:
    """Returns the base form of a verb (`play` of `plays`); None if tag and spelling disagree."""
    if verb.tag_ == "VBP":
        return verb.lower_
    if verb.tag_ not in _DO:
        return None
    if known := find_verb(verb.lower_, verb.tag_):
        return known.base
    lemma = verb.lemma_.lower()
    regular = inflect(lemma) if lemma.isalpha() else None
    form = regular and {"VBZ": regular.third, "VBD": regular.past}[verb.tag_]
    return lemma if form == verb.lower_ else None


def _replace_token(text: str, token: "spacy.tokens.Token", words: str) -> str:
    return text[: token.idx] + words + text[token.idx + len(token) :]


def swapped_object(text: str, key: str, doc: object) -> str | None:
    """Replaces all mentions of one thing or person by another of its kind: `a woman is playing a piano`."""
    table = load_words(_EXCHANGES)
    found = find_words(text, _EXCHANGES)
    named = {word[0].lower() for word in found}
    for name in shuffle(sorted(named), key):
        # "a man and a woman" would become "a woman and a woman", and he would still put on his hat.
        others = [other for other in table[name] if not re.search(rf"\b{other}\b", text, re.IGNORECASE)]
        if not others or (name in _PEOPLE and _GENDERED.search(text)):
            continue
        other = choose(others, f"{key}/{name}")
        return replace_spans(text, ((word.start(), word.end(), other) for word in found if word[0].lower() == name))
    return None


_CHANGED = "changed meaning"
CONTROLS = rules_by_key(
    Rule(_CHANGED, "negation", None, True, "the verb of the sentence negated", negation),
    Rule(
        "changed meaning",
        "swapped_object",
        None,
        False,
        "a thing or person replaced by another of its kind",
        swapped_object,
    ),
    Rule(
        "changed meaning",
        "swapped_direction",
        None,
        False,
        "a direction, place or change replaced by its opposite",
        swapped_direction,
    ),
)
"""Key -> rule."""
