"""Helpers for rules on a dependency parse, and the rule that fronts the last phrase.

The parser was trained on edited text, while captions are lower case, short and misspelt. The rules therefore apply only to
sentences with a simple parse, and leave all others unchanged.
"""

import itertools
import re
from typing import TYPE_CHECKING

from waver.evaluation.robustness.rewriting.words import word_set

if TYPE_CHECKING:
    import spacy.tokens

_PUNCTUATION = re.compile(r"[^\w\s'\u2019.!-]|[.!].|\bs\b|--")
_FRONTED_PREPOSITIONS = word_set(
    """
    in on at near under behind beside inside outside along across through during beneath underneath between
    among alongside after before
    """
)
_FRONTED_ADVERBS = word_set(
    """
    outside outdoors indoors backstage onstage underwater downstairs upstairs slowly quickly rapidly suddenly
    carefully gently quietly loudly happily briefly momentarily finally
    """
)
# Verbs that the parser mistakes for nouns after "and": "raises her hands and spins".
_OFTEN_VERBS = word_set(
    """
    move talk turn walk look run jump dance ride fall go stand sit smile laugh wave point shake kick throw play
    drink cook show spin step start stop leave swing bow roll slide clap pass push pull hit hug kiss watch change
    """
)
_CONJUNCTIONS = frozenset({"while", "when", "as", "because", "after", "before"})
# Verbs with a prepositional complement, as of goal, target or result: their "in" or "on" phrase cannot be fronted.
_BOUND = word_set(
    """
    put place pour drop throw set lay add mix stir dip dunk cut jump dive fall get climb step load stuff insert
    roll wrap turn try spread apply press stick hang write draw paint click land hop push pull kick hit lean
    rely focus concentrate work knock tap bite stab peck punch shoot engage participate compete take bring lead
    dress cover blow sprinkle scratch kiss pat slap smack rub arrive look stare point break slice fold split
    chop tear smile laugh bark wave aim gaze glare yell shout scream toss fire dig pass drive run go come move
    walk crawl slide dice pick keep leave stay remain live be have become seem appear end start begin trip crash
    bump slam collide bang bounce brush clean wash wipe comb tie touch pet lick poke bathe sink submerge soak
    plunge join help believe attach fix open close rip pack fill flip stamp cheer stack pile sniff growl hiss
    use center zoom pan tread pounce attack feed chew gnaw nibble drag carry
    """
)
_MOVES_ALONG = word_set("run walk go move drive crawl slide pass drag carry roll jump leap")
# Nouns whose "in" or "on" phrase is not a place of the action: body parts, shapes, manners.
_NO_PLACES = word_set(
    """
    head face back nose cheek leg arm hand belly stomach chest ear neck shoulder mouth eye foot finger lap
    forehead hair tail half piece slice cube strip shape form way part fact order case line favor charge use
    time microphone mic person circle detail
    """
)


def render(doc: "spacy.tokens.Doc", parts: "list[list[spacy.tokens.Token] | str]") -> str:
    """Joins parts of a caption in a new order; keeps a capital letter first and a full stop last."""
    texts = [part if isinstance(part, str) else doc[part[0].i : part[-1].i + 1].text for part in parts if part]
    first = doc[0]
    if first.text[:1].isupper() and first.pos_ != "PROPN" and first.text != "I":
        texts = [
            first.lower_ + text[len(first) :] if not isinstance(part, str) and part[0].i == 0 else text
            for part, text in zip(filter(None, parts), texts, strict=True)
        ]
    if first.text[:1].isupper():
        texts[0] = texts[0][:1].upper() + texts[0][1:]
    return " ".join(texts).replace(" ,", ",") + "".join(token.text for token in _ending(doc))


def _ending(doc: "spacy.tokens.Doc") -> "list[spacy.tokens.Token]":
    return [token for token in doc[-1:] if token.text in {".", "!"}]


def sentence_tokens(doc: "spacy.tokens.Doc") -> "list[spacy.tokens.Token]":
    """Returns the tokens without final full stop; empty if there is other punctuation or not exactly one sentence."""
    roots = [token for token in doc if token.head == token]
    if any(before.lower_ == "and" and may_be_verb(after) for before, after in itertools.pairwise(doc)):
        return []
    if len(roots) != 1 or _PUNCTUATION.search(doc.text) or doc.text.isupper():
        return []
    return list(doc[: len(doc) - len(_ending(doc))])


def may_be_verb(token: "spacy.tokens.Token") -> bool:
    """Returns whether a word that the parser tags as noun is often a verb."""
    return token.lower_ in _OFTEN_VERBS or token.lower_.removesuffix("s") in _OFTEN_VERBS


def subtree_tokens(token: "spacy.tokens.Token") -> "list[spacy.tokens.Token] | None":
    """Returns the subtree of a token; None if it is not contiguous."""
    tokens = [part for part in token.subtree if not (part.i + 1 == len(part.doc) and part.text in {".", "!"})]
    return tokens if tokens and tokens[-1].i - tokens[0].i + 1 == len(tokens) else None


def root_of(tokens: "list[spacy.tokens.Token]") -> "spacy.tokens.Token":
    """Returns the root of the dependency tree."""
    return next(token for token in tokens if token.head == token)


def agrees(verb: "spacy.tokens.Token", subject: "spacy.tokens.Token") -> bool:
    """Returns whether subject and verb agree in number, as far as visible; if not, the parse is likely wrong."""
    plural = subject.tag_ in {"NNS", "NNPS"} or any(child.dep_ == "conj" for child in subject.children)
    singular = subject.tag_ in {"NN", "NNP"} and not plural
    return not (plural and verb.tag_ == "VBZ") and not (singular and verb.tag_ == "VBP")


def clause_order(text: str, key: str, doc: "spacy.tokens.Doc") -> str | None:
    """Moves the last phrase to the front if it gives place or time: `on the stage, a man is singing`."""
    tokens = sentence_tokens(doc)
    verb = _only_verb(tokens) if tokens else None
    if verb is None:
        return None
    for phrase in verb.rights:
        moved = subtree_tokens(phrase)
        if moved and moved[-1].i == tokens[-1].i and _can_be_fronted(phrase, verb, moved):
            rest = tokens[: moved[0].i]
            if rest[-1].pos_ in {"ADP", "PART", "CCONJ", "DET"} or rest[-1].dep_ in {"prt", "prep", "aux"}:
                return None
            # "talks to the people in the audience": the last phrase may modify the noun.
            if rest[-1].dep_ == "pobj" and rest[-1].head.lower_ in {"to", "of", "for", "from", "between"}:
                return None
            return render(doc, [moved, ",", rest])
    return None


def _only_verb(tokens: "list[spacy.tokens.Token]") -> "spacy.tokens.Token | None":
    """Returns the verb of `a man is singing` or `a man singing` if the caption starts with its subject; else None."""
    root = root_of(tokens)
    if root.pos_ == "NOUN":
        verbs = [child for child in root.rights if child.dep_ == "acl" and child.tag_ == "VBG"]
        verb = verbs[0] if len(verbs) == 1 else None
        subject = root
    else:
        subjects = [child for child in root.lefts if child.dep_ in {"nsubj", "nsubjpass"}]
        verb = root if root.pos_ == "VERB" and len(subjects) == 1 else None
        subject = subjects[0] if subjects else root
    if verb is None or subject.left_edge.i != 0 or subject.pos_ not in {"NOUN", "PROPN", "PRON", "NUM"}:
        return None
    if any(child.dep_ in {"conj", "cc", "ccomp", "xcomp", "parataxis", "dep"} for child in verb.children):
        return None
    return verb


def _can_be_fronted(
    phrase: "spacy.tokens.Token", verb: "spacy.tokens.Token", moved: "list[spacy.tokens.Token]"
) -> bool:
    word, deps = phrase.lower_, {child.dep_ for child in phrase.children}
    if phrase.dep_ == "advcl":
        return moved[0].lower_ in _CONJUNCTIONS and phrase.pos_ in {"VERB", "AUX"} and len(moved) > 1
    if phrase.dep_ == "advmod":
        return len(moved) == 1 and word in _FRONTED_ADVERBS
    if phrase.dep_ != "prep" or word not in _FRONTED_PREPOSITIONS or moved[0] != phrase:
        return False
    if word in {"after", "before"} and "pcomp" in deps:
        return True
    things = [child for child in phrase.children if child.dep_ == "pobj"]
    if len(things) != 1 or things[0].pos_ != "NOUN" or len(things[0]) == 1 or things[0].lemma_.lower() in _NO_PLACES:
        return False
    if any(token.pos_ == "CCONJ" or token.lower_ == "each" for token in moved):
        return False
    if any(token.pos_ == "VERB" or (token.pos_ == "PRON" and token.dep_ == "pobj") for token in moved):
        return False
    verb_lemma = verb.lemma_.lower()
    along = word in {"along", "through", "across"} and verb_lemma in _MOVES_ALONG
    return along or verb_lemma not in _BOUND or word == "during"
