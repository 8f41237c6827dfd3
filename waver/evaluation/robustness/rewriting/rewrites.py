"""Rules that change the wording of a caption and keep its meaning, at named severities."""

from functools import partial

from waver.evaluation.robustness.rewriting.passive import passive
from waver.evaluation.robustness.rewriting.rule import Rule, rules_by_key
from waver.evaluation.robustness.rewriting.surface import (
    casual,
    keywords,
    no_determiners,
    sentence_case,
    strip_punctuation,
    typos,
    upper_case,
    wordy,
)
from waver.evaluation.robustness.rewriting.synonyms import synonyms
from waver.evaluation.robustness.rewriting.syntax import clause_order

_CASE, _TYPOS, _FEWER, _MORE = "case and punctuation", "typing mistakes", "fewer words", "more words"
_CASUAL, _SYNONYMS, _SYNTAX = "casual words", "synonyms", "syntax"
RULES = rules_by_key(
    Rule(_CASE, "punctuation_case", "sentence", False, "a capital letter first, a full stop last", sentence_case),
    Rule(_CASE, "punctuation_case", "bare", False, "lower case, no punctuation", strip_punctuation),
    Rule(_CASE, "punctuation_case", "upper", False, "upper case", upper_case),
    Rule(
        _TYPOS,
        "typos",
        "light",
        False,
        "a typing mistake in one word of four letters or more",
        partial(typos, share=0.0),
    ),
    Rule(_TYPOS, "typos", "medium", False, "typing mistakes in half of those words", partial(typos, share=0.5)),
    Rule(_TYPOS, "typos", "heavy", False, "typing mistakes in all of those words", partial(typos, share=1.0)),
    Rule(_FEWER, "keywords", None, False, "content words only", keywords),
    Rule(_FEWER, "no_determiners", None, False, "without a, an, the, some", no_determiners),
    Rule(_MORE, "wordy", "light", False, "after a phrase without content", partial(wordy, severity="light")),
    Rule(_MORE, "wordy", "heavy", False, "between two phrases without content", partial(wordy, severity="heavy")),
    Rule(_CASUAL, "casual", "light", False, "lower case, contractions, no full stop", partial(casual, heavy=False)),
    Rule(_CASUAL, "casual", "heavy", False, "the same with fillers and dropped g's", partial(casual, heavy=True)),
    Rule(_SYNONYMS, "synonyms", "one", False, "one word replaced by a synonym", partial(synonyms, every=False)),
    Rule(
        _SYNONYMS, "synonyms", "all", False, "every word of the synonym table replaced", partial(synonyms, every=True)
    ),
    Rule(_SYNTAX, "passive", None, True, "subject, verb and object in the passive", passive),
    Rule(_SYNTAX, "clause_order", None, True, "the last phrase of place, time or manner comes first", clause_order),
)
"""Key, such as `typos-light` -> rule."""
