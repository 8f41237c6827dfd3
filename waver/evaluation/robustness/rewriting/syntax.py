"""Rewrites and controls that look at the parse of a caption. Where it is not plain, they leave the caption alone.

The parser was made for newspapers, and captions are lower case, short and misspelt: what is done here is done only to
sentences of which every word has its place.
"""

import itertools
import re

from waver.evaluation.robustness.rewriting.words import word_set

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
# What the parser takes for nouns behind "and": "raises her hands and spins".
_OFTEN_VERBS = word_set(
    """
    move talk turn walk look run jump dance ride fall go stand sit smile laugh wave point shake kick throw play
    drink cook show spin step start stop leave swing bow roll slide clap pass push pull hit hug kiss watch change
    """
)
_CONJUNCTIONS = frozenset({"while", "when", "as", "because", "after", "before"})
# Verbs whose "in" or "on" belongs to them: where something goes, what is aimed at, in which form it ends.
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
# Things in or on which something is done, not where it is done; and ways to do it.
_NO_PLACES = word_set(
    """
    head face back nose cheek leg arm hand belly stomach chest ear neck shoulder mouth eye foot finger lap
    forehead hair tail half piece slice cube strip shape form way part fact order case line favor charge use
    time microphone mic person circle detail
    """
)


def render(doc: "spacy.tokens.Doc", parts: "list[list[spacy.tokens.Token] | str]") -> str:
    """Parts of a caption in another order, in its case: a capital first and a full stop last, if it has them."""
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
    """The tokens without a full stop at the end; none where there is other punctuation, or no one sentence."""
    roots = [token for token in doc if token.head == token]
    if any(before.lower_ == "and" and may_be_verb(after) for before, after in itertools.pairwise(doc)):
        return []
    if len(roots) != 1 or _PUNCTUATION.search(doc.text) or doc.text.isupper():
        return []
    return list(doc[: len(doc) - len(_ending(doc))])


def may_be_verb(token: "spacy.tokens.Token") -> bool:
    """Whether a word is often a verb where the parser sees a noun."""
    return token.lower_ in _OFTEN_VERBS or token.lower_.removesuffix("s") in _OFTEN_VERBS


def subtree_tokens(token: "spacy.tokens.Token") -> "list[spacy.tokens.Token] | None":
    """What hangs on a token, with itself; None where other words stand between."""
    tokens = [part for part in token.subtree if not (part.i + 1 == len(part.doc) and part.text in {".", "!"})]
    return tokens if tokens and tokens[-1].i - tokens[0].i + 1 == len(tokens) else None


def root_of(tokens: "list[spacy.tokens.Token]") -> "spacy.tokens.Token":
    """The token that all others hang on."""
    return next(token for token in tokens if token.head == token)


def agrees(verb: "spacy.tokens.Token", subject: "spacy.tokens.Token") -> bool:
    """Whether subject and verb have one number, as far as that shows; where not, one of them is likely another word."""
    plural = subject.tag_ in {"NNS", "NNPS"} or any(child.dep_ == "conj" for child in subject.children)
    singular = subject.tag_ in {"NN", "NNP"} and not plural
    return not (plural and verb.tag_ == "VBZ") and not (singular and verb.tag_ == "VBP")


def clause_order(text: str, key: str, doc: "spacy.tokens.Doc") -> str | None:
    """`on the stage, a man is singing`: what stands last, if it tells where or when, comes first."""
    tokens = sentence_tokens(doc)
    verb = _plain_verb(tokens) if tokens else None
    if verb is None:
        return None
    for phrase in verb.rights:
        moved = subtree_tokens(phrase)
        if moved and moved[-1].i == tokens[-1].i and _can_be_fronted(phrase, verb, moved):
            rest = tokens[: moved[0].i]
            if rest[-1].pos_ in {"ADP", "PART", "CCONJ", "DET"} or rest[-1].dep_ in {"prt", "prep", "aux"}:
                return None
            # "talks to the people in the audience": who is in the audience?
            if rest[-1].dep_ == "pobj" and rest[-1].head.lower_ in {"to", "of", "for", "from", "between"}:
                return None
            return render(doc, [moved, ",", rest])
    return None


def _plain_verb(tokens: "list[spacy.tokens.Token]") -> "spacy.tokens.Token | None":
    """The verb of `a man is singing` or of `a man singing`, if the caption begins with the man and has one such verb."""
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
