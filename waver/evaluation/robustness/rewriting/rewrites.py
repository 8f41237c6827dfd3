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

RULES = rules_by_key(
    Rule("punctuation_case", "sentence", False, "a capital letter first, a full stop last", sentence_case),
    Rule("punctuation_case", "bare", False, "lower case, no punctuation", strip_punctuation),
    Rule("punctuation_case", "upper", False, "upper case", upper_case),
    Rule("typos", "light", False, "a typing mistake in one word of four letters or more", partial(typos, share=0.0)),
    Rule("typos", "medium", False, "typing mistakes in half of those words", partial(typos, share=0.5)),
    Rule("typos", "heavy", False, "typing mistakes in all of those words", partial(typos, share=1.0)),
    Rule("keywords", None, False, "content words only", keywords),
    Rule("no_determiners", None, False, "without a, an, the, some", no_determiners),
    Rule("wordy", "light", False, "after a phrase without content", partial(wordy, severity="light")),
    Rule("wordy", "heavy", False, "between two phrases without content", partial(wordy, severity="heavy")),
    Rule("casual", "light", False, "lower case, contractions, no full stop", partial(casual, heavy=False)),
    Rule("casual", "heavy", False, "the same with fillers and dropped g's", partial(casual, heavy=True)),
    Rule("synonyms", "one", False, "one word replaced by a synonym", partial(synonyms, every=False)),
    Rule("synonyms", "all", False, "every word of the synonym table replaced", partial(synonyms, every=True)),
    Rule("passive", None, True, "subject, verb and object in the passive", passive),
    Rule("clause_order", None, True, "the last phrase of place, time or manner comes first", clause_order),
)
"""Key, such as `typos-light` -> rule."""
