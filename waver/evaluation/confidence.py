"""How much a retrieval metric says: its value by chance, and how far apart two values must be to mean something."""

import math
from collections.abc import Mapping

import pyarrow as pa

from waver.data.annotations.captions import count_split, validation_source
from waver.evaluation.metrics import chance

MIN_CLIPS = 50
"""Clips of validation below which its metrics hardly tell two models apart."""


def beside(num_clips: int, metric: str = "t2v/R@1") -> str:
    """Returns what should stand beside a metric: its value for random scores and the gallery, `chance 4.3, 23 clips`."""
    return f"chance {chance(num_clips)[metric]:.1f}, {num_clips} clip{'s' if num_clips > 1 else ''}"


def standard_error(percent: float, num_queries: int) -> float:
    """Returns the standard error of a recall, in points, for so many queries taken as independent.

    It is that of a binomial proportion. One hit and one miss are added: 0 and 100 % of few queries have an error too.

    Args:
        percent: the recall.
        num_queries: number of queries.
    """
    proportion = (percent / 100 * num_queries + 1) / (num_queries + 2)
    return 100 * math.sqrt(proportion * (1 - proportion) / (num_queries + 2))


def describe_errors(metrics: Mapping[str, float], num_clips: int, num_captions: int) -> str:
    """Returns chance, gallery and the standard errors of R@1 in the directions that `metrics` has, in words."""
    errors = [
        f"{error:.1f} points of {metric} ({num_queries} {queries})"
        for metric, num_queries, queries in (("t2v/R@1", num_captions, "captions"), ("v2t/R@1", num_clips, "clips"))
        if metric in metrics
        for error in [standard_error(metrics[metric], num_queries)]
    ]
    return f"R@1: {beside(num_clips)}; the standard error is {' and '.join(errors)}"


def find_small_validation(captions: pa.Table) -> tuple[str, str] | None:
    """Says whether the validation split of a caption table is too small to choose epochs and trials by.

    Returns:
        (what is wrong, what to do); None if the split has `MIN_CLIPS` clips or more, or none at all.
    """
    num_clips, num_captions = count_split(captions, "validation")
    if num_clips == 0 or num_clips >= MIN_CLIPS:
        return None
    remedy = (
        f"hold out more of train, best {MIN_CLIPS} clips, for example with --set data.validation_fraction=0.4"
        if validation_source(captions) != "own"
        else f"give more clips the split validation, best {MIN_CLIPS}"
    )
    return (
        f"validation has {num_clips} clip{'s' if num_clips > 1 else ''} and {num_captions} captions: R@1 is "
        f"{chance(num_clips)['t2v/R@1']:.1f} by chance, and its standard error is up to "
        f"{standard_error(50.0, num_captions):.0f} points, so that it hardly tells epochs or trials apart",
        remedy,
    )


def describe_rivals(
    values: Mapping[int, float],
    best: int,
    metric: str,
    *,
    what: str,
    num_clips: int | None = None,
    num_captions: int | None = None,
) -> list[str]:
    """Says which values tie with the best, and which differ from it by no more than its standard error.

    Only recalls have a standard error.

    Args:
        values: number of a trial or an epoch -> value of the metric.
        best: number of the best.
        metric: such as t2v/R@1.
        what: `trial` or `epoch`.
        num_clips: number of clips, the queries of v2t; None if it is unknown.
        num_captions: number of captions, the queries of t2v; None if it is unknown.

    Returns:
        Sentences; none if the best stands alone.
    """
    value, sentences = values[best], []
    others = {number: other for number, other in values.items() if number != best}
    tied = [number for number, other in others.items() if math.isclose(other, value, abs_tol=1e-9)]
    if tied:
        verb = "ties" if len(tied) == 1 else "tie"
        sentences.append(f"{_listed(what, tied)} {verb} with {what} {best} at {metric} {value:.2f}")
    num_queries = num_captions if metric.startswith("t2v") else num_clips
    if "/R@" in metric and num_queries:
        error = standard_error(value, num_queries)
        near = [number for number, other in others.items() if number not in tied and abs(other - value) <= error]
        if near:
            sentences.append(
                f"{_listed(what, near)} differ{'s' if len(near) == 1 else ''} from {what} {best} by less than the standard "
                f"error of {metric} ({error:.1f} points for {num_queries} queries)"
            )
    return sentences


def _listed(what: str, numbers: list[int], most: int = 4) -> str:
    """Returns the numbers in words, such as `trials 1, 2 and 5`; of more than `most`, how many are left out."""
    if len(numbers) == 1:
        return f"{what} {numbers[0]}"
    shown, left = numbers[:most], len(numbers) - most
    parts = [*map(str, shown), *([f"{left} more"] if left > 0 else [])]
    return f"{what}s {', '.join(parts[:-1])} and {parts[-1]}"
