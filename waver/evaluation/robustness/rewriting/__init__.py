"""The same query in other words, and in words that say something else.

`RULES` put a caption differently and keep what it says; `CONTROLS` keep the words and change what it says. All of it is
text: nothing here needs a video or a network.

rewrites.py, controls.py    what there is
rule.py                     how a rule is applied: without order, without state, with choices made by hashes
surface.py, synonyms.py     rules that look at words
syntax.py, passive.py       rules that look at a parse
imported.py                 captions that somebody else rewrote
"""

from waver.evaluation.robustness.rewriting.controls import CONTROLS
from waver.evaluation.robustness.rewriting.imported import ImportedRewrite, read_rewrites
from waver.evaluation.robustness.rewriting.rewrites import RULES
from waver.evaluation.robustness.rewriting.rule import Rule, available_rules, parse_captions, rewrite

__all__ = [
    "CONTROLS",
    "RULES",
    "ImportedRewrite",
    "Rule",
    "available_rules",
    "parse_captions",
    "read_rewrites",
    "rewrite",
]
