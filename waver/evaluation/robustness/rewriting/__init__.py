"""Rewrites captions by deterministic rules.

`RULES` change the wording and keep the meaning; `CONTROLS` keep most words and change the meaning. Rules need text only, no
video and no network.

rewrites.py, controls.py    tables of the rules and controls
rule.py                     applies a rule; random choices come from hashes, so results do not depend on order or process
surface.py, synonyms.py     rules on words
syntax.py, passive.py       rules on a dependency parse
imported.py                 reads captions that people or models rewrote
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
