"""The worst case over versions of one kind: typing mistakes, case and punctuation, syntax, other writers.

The worst case over all versions falls with their number, so it says little by itself. Here each clip of a family has the
same versions, and their number stands beside the metric.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from waver.evaluation.robustness.measures import (
    Answers,
    Ratio,
    StyleMetrics,
    VersionMetrics,
    compute_style_metrics,
    compute_version_metrics,
)
from waver.evaluation.robustness.queries import TRACKS, Queries
from waver.evaluation.robustness.rewriting import RULES

_OF_TRACK = {"natural": "human versions", "imported": "imported versions"}
"""Track -> the family that all its versions form; those of the rules have a family each."""


@dataclass(frozen=True)
class FamilyMetrics:
    """Metrics of the clips that have the same versions of one kind, and of these versions."""

    versions: tuple[str, ...]
    """Styles of the versions of every clip, one for each version."""
    sets: VersionMetrics
    """Metrics over the versions of a clip and their reference."""
    queries: StyleMetrics
    """Metrics over the versions, each taken alone."""

    @property
    def worst_case(self) -> Ratio:
        """Share of clips that are at rank 1 for the reference and all of these versions."""
        return self.sets.worst_case[1]


def compute_families(answers: Answers, queries: Queries) -> dict[str, FamilyMetrics]:
    """Computes family -> metrics, for all families that have versions.

    Not every rule applies to every caption. Of each family, the clips count that have its most frequent set of versions; of
    equally frequent ones, the larger.
    """
    order = [*_OF_TRACK.values(), *(rule.family for rule in RULES.values())]
    rows_of: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row in queries.of_track(*TRACKS).tolist():
        query = queries.rows[row]
        rule = RULES.get(query.style)
        family = _OF_TRACK.get(query.track) or (rule.family if rule else query.style)
        rows_of[family][int(queries.clip[row])].append(row)
    families = sorted(rows_of, key=lambda family: order.index(family) if family in order else len(order))
    return {family: _compute(answers, queries, rows_of[family]) for family in families}


def _compute(answers: Answers, queries: Queries, of_clip: dict[int, list[int]]) -> FamilyMetrics:
    """Computes the metrics of a family from clip -> its versions."""
    clips_of: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for clip, rows in of_clip.items():
        clips_of[tuple(sorted(queries.rows[row].style for row in rows))].append(clip)
    versions = max(clips_of, key=lambda styles: (len(clips_of[styles]), len(styles), styles))
    chosen = np.array([row for clip in clips_of[versions] for row in of_clip[clip]])
    place = queries.reference[chosen], queries.clip, queries.video
    return FamilyMetrics(
        versions,
        sets=compute_version_metrics(answers, chosen, *place),
        queries=compute_style_metrics(answers, chosen, *place),
    )
