"""Turns captions with subject, verb and object into the passive: `an onion is being cut by a man`."""

from typing import TYPE_CHECKING

from waver.evaluation.robustness.rewriting.syntax import (
    agrees,
    may_be_verb,
    render,
    root_of,
    sentence_tokens,
    subtree_tokens,
)
from waver.evaluation.robustness.rewriting.verbs import find_verb
from waver.evaluation.robustness.rewriting.words import word_set

if TYPE_CHECKING:
    import spacy.tokens

_OBJECT_CASE = {"he": "him", "she": "her", "they": "them", "i": "me", "we": "us", "you": "you", "it": "it"}
_SUBJECT_CASE = {"him": "he", "her": "she", "them": "they", "me": "I", "us": "we", "you": "you", "it": "it"}
# Pronouns whose antecedent would change: "his hair is being brushed by a man".
_BOUND_PRONOUNS = word_set(
    """
    his her its their my our your himself herself itself themselves each other own one who which that what
    himselfs theirselves them him he she they it
    """
)
# Objects of idioms ("makes fun", "takes turns"), and quantities whose grammatical number is unclear.
_IDIOMS = word_set(
    """
    way place turn turns fun care part time home lot number bunch couple variety pair place sense love something
    anything nothing use off distance look mile miles minute minutes hour hours meter meters foot feet sort kind
    type what how day night
    """
)
_SCREENS = word_set(
    """
    video clip movie film scene camera picture image animation advertisement commercial
    """
)
# After an object these prepositions may attach to the verb; others may attach to the object ("the door to a house").
_OF_THE_VERB = word_set(
    """
    into onto in on at off out from through across along over down near under around during
    """
)
_WITHOUT_PARTICLE = frozenset({"perform", "play", "sing", "watch"})  # "performing out stage"
_PLACING = word_set("add pour put place")
_INSTRUMENTS = word_set(
    """
    knife fork spoon stick brush hammer sword spatula scissors machine blender whisk razor comb towel cloth axe
    saw tool peeler grater pencil pen gun camera rope needle pin chopstick chopsticks tongs hands hand
    """
)
_MODALS = frozenset({"can", "will", "could", "would", "may", "might", "must", "should"})
_MASS_PLURALS = frozenset({"news", "gymnastics", "yoga", "karate", "tennis", "billiards"})


def passive(text: str, key: str, doc: "spacy.tokens.Doc") -> str | None:
    """Exchanges subject and object. Words after the object follow the verb; the former subject comes last."""
    tokens = sentence_tokens(doc)
    if not tokens:
        return None
    verb = root_of(tokens)
    if verb.pos_ not in {"VERB", "NOUN"}:
        return None
    if verb.pos_ == "NOUN":  # a man cutting an onion
        verbs = [child for child in verb.rights if child.dep_ == "acl" and child.tag_ == "VBG"]
        if len(verbs) != 1:
            return None
        subject = tokens[: verbs[0].left_edge.i]
        if len(subject) > 1 and subject[0].pos_ not in {"DET", "NUM"}:  # not "udon noodle making video"
            return None
        subject_head, verb = verb, verbs[0]
    else:
        heads = [child for child in verb.lefts if child.dep_ == "nsubj"]
        subject = subtree_tokens(heads[0]) if len(heads) == 1 else None
        subject_head = heads[0] if heads else verb
    thing_heads = [child for child in verb.rights if child.dep_ == "dobj"]
    thing = subtree_tokens(thing_heads[0]) if len(thing_heads) == 1 else None
    if (
        not subject
        or not thing
        or subject[0].i != 0
        or not _can_be_exchanged(subject, subject_head, thing, thing_heads[0])
    ):
        return None

    middle, tail = tokens[subject[-1].i + 1 : verb.i], tokens[thing[-1].i + 1 :]
    particle = tokens[verb.i + 1 : thing[0].i]
    if not _can_keep_rest(verb, middle, particle, tail):
        return None
    if verb.lemma_ in _PLACING and any(token.dep_ == "prep" and token.lower_ != "of" for token in thing):
        return None
    if not agrees(verb, subject_head):
        return None
    verb_group = _passive_verb(verb, middle, _is_plural(thing_heads[0], thing))
    if verb_group is None:
        return None
    agent: list[spacy.tokens.Token] | str = (
        _OBJECT_CASE.get(subject[0].lower_, subject) if len(subject) == 1 else subject
    )
    patient: list[spacy.tokens.Token] | str = _SUBJECT_CASE.get(thing[0].lower_, thing) if len(thing) == 1 else thing
    return render(doc, [patient, verb_group, particle, tail, "by", agent])


def _can_be_exchanged(
    subject: "list[spacy.tokens.Token]",
    subject_head: "spacy.tokens.Token",
    thing: "list[spacy.tokens.Token]",
    head: "spacy.tokens.Token",
) -> bool:
    """Returns whether subject and object are noun phrases that can be exchanged."""
    if subject_head.pos_ not in {"NOUN", "PROPN", "PRON", "NUM"} or head.pos_ not in {"NOUN", "PROPN", "PRON"}:
        return False
    if any(may_be_verb(token) and token.tag_ in {"NNS", "NN"} for token in [*subject[1:], *thing[1:]]):
        return False
    if subject[-1].pos_ not in {"NOUN", "PROPN", "PRON", "NUM", "ADV", "ADJ"}:
        return False
    if subject_head.lower_ in _BOUND_PRONOUNS - set(_OBJECT_CASE) or subject_head.lemma_.lower() in _SCREENS:
        return False
    if len(subject) > 1 and subject_head.lower_ in _OBJECT_CASE:
        return False
    if len(thing) > 8 or len(subject) > 10 or head.lower_ in _IDIOMS or head.lemma_.lower() in _IDIOMS:
        return False
    if any(token.pos_ in {"VERB", "AUX"} for token in thing) or any(token.dep_ == "relcl" for token in subject):
        return False
    if len(thing) == 1 and head.lower_ in _SUBJECT_CASE:
        return head.lower_ not in {"it"}
    return not any(token.lower_ in _BOUND_PRONOUNS | {"with"} for token in thing)


def _can_keep_rest(
    verb: "spacy.tokens.Token",
    middle: "list[spacy.tokens.Token]",
    particle: "list[spacy.tokens.Token]",
    tail: "list[spacy.tokens.Token]",
) -> bool:
    """Returns whether all words between subject and verb, and after the object, can be kept in the passive."""
    if any(token.head != verb or token.dep_ not in {"aux", "advmod"} for token in middle):
        return False
    if any(token.dep_ == "advmod" and not token.lower_.endswith("ly") for token in middle):
        return False
    if len(particle) > 1 or any(token.dep_ != "prt" or verb.lemma_ in _WITHOUT_PARTICLE for token in particle):
        return False
    if len(tail) > 8 or any(token.pos_ in {"VERB", "AUX", "PRON", "CCONJ", "SCONJ"} for token in tail):
        return False
    if any(token.lower_ in _BOUND_PRONOUNS for token in tail):
        return False
    heads = [token for token in tail if token.head == verb]
    if any(not _belongs_to_verb(head) for head in heads):
        return False
    inside = {part.i for head in heads for part in head.subtree}
    return all(token.i in inside for token in tail)


def _belongs_to_verb(head: "spacy.tokens.Token") -> bool:
    """Returns whether a phrase after the object modifies the verb, not the object."""
    if head.dep_ == "advmod":
        return head.lower_.endswith("ly")
    things = [child.lower_ for child in head.children if child.dep_ == "pobj"]
    if head.lower_ == "to":
        return len(things) == 1 and things[0] in {"left", "right"}
    if head.dep_ != "prep" or head.lower_ not in _OF_THE_VERB | {"with"}:
        return False
    return head.lower_ != "with" or (len(things) == 1 and things[0] in _INSTRUMENTS)


def _is_plural(head: "spacy.tokens.Token", thing: "list[spacy.tokens.Token]") -> bool | None:
    """Returns whether a verb with this subject is plural; None if unclear."""
    if any(token.head == head and token.dep_ == "conj" for token in thing):
        return True if any(token.lower_ == "and" for token in thing) else None
    if len(thing) == 1 and head.lower_ in _SUBJECT_CASE:
        return head.lower_ in {"them", "us", "you"}
    plural = head.tag_ in {"NNS", "NNPS"} and head.lower_ not in _MASS_PLURALS
    words = {token.lower_ for token in thing if token.head == head}
    counted = any(token.pos_ == "NUM" and token.lower_ not in {"one", "1"} for token in thing if token.head == head)
    if plural and words & {"a", "an", "this", "one", "another", "each"}:
        return None
    if not plural and (counted or words & {"these", "those", "several", "many", "few", "both"}):
        return None
    return plural


def _passive_verb(verb: "spacy.tokens.Token", middle: "list[spacy.tokens.Token]", plural: bool | None) -> str | None:
    """Returns the passive verb group in the tense of the active (`is being slowly cut`); None for other tenses."""
    forms = find_verb(verb.lower_, verb.tag_)
    if forms is None or plural is None:
        return None
    auxiliaries = [token.lower_ for token in middle if token.dep_ == "aux"]
    adverbs = [token.text for token in middle if token.dep_ == "advmod"]
    present, past, has = ("are", "were", "have") if plural else ("is", "was", "has")
    be = None
    if verb.tag_ == "VBG" and not auxiliaries:
        be = ["being"]
    elif verb.tag_ == "VBG" and len(auxiliaries) == 1 and auxiliaries[0] in {"is", "are", "am", "'s", "'re"}:
        be = [present, "being"]
    elif verb.tag_ == "VBG" and auxiliaries in (["was"], ["were"]):
        be = [past, "being"]
    elif verb.tag_ in {"VBZ", "VBP"} and not auxiliaries:
        be = [present]
    elif verb.tag_ == "VBD" and not auxiliaries:
        be = [past]
    elif verb.tag_ == "VB" and len(auxiliaries) == 1 and auxiliaries[0] in _MODALS:
        be = [auxiliaries[0], "be"]
    elif verb.tag_ == "VBN" and auxiliaries in (["has"], ["have"]):
        be = [has, "been"]
    elif verb.tag_ == "VBN" and auxiliaries == ["had"]:
        be = ["had", "been"]
    return None if be is None else " ".join([*be, *adverbs, forms.participle])
