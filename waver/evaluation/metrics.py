"""Retrieval metrics from ranks: R@K, median rank (MdR) and mean rank (MnR)."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from waver.evaluation.ranking import Ranks


def retrieval_metrics(ranks: Ranks) -> dict[str, float]:
    """Computes `t2v/R@1`, `R@5`, `R@10` in percent, `MdR` and `MnR`; the same for `v2t`.

    With ties R@K is an expectation, see `expected_hits`. A miss is outside every R@K; for the median and mean rank it counts
    as the last rank of the gallery.
    """
    gallery_size = len(ranks.v2t)
    t2v = direction_metrics("t2v", ranks.t2v, ranks.t2v_ties, gallery_size)
    return t2v | direction_metrics("v2t", ranks.v2t, ranks.v2t_ties, gallery_size)


def expected_hits(ranks: Any, ties: Any, k: int) -> Any:
    """Returns the probability that the correct answer of each query is among the first k if ties are broken at random.

    With H wrong answers that score higher and T that score the same, it is (k - H) / (T + 1), limited to [0, 1].

    Args:
        ranks: mean ranks 1 + H + T / 2, a tensor or array (queries,); inf for a miss.
        ties: T, of the same kind and shape.
        k: number of first answers.
    """
    higher = ranks - 1 - ties / 2
    return ((k - higher) / (ties + 1)).clip(0, 1)


def direction_metrics(
    direction: str, ranks: Float[Tensor, " queries"], ties: Int[Tensor, " queries"], gallery_size: int
) -> dict[str, float]:
    """Computes the metrics of one direction, for all of its queries or a subset.

    Args:
        direction: t2v or v2t.
        ranks: rank of the correct answer of each query; inf for a miss.
        ties: number of wrong answers that score the same.
        gallery_size: number of clips, the rank of a miss in MdR and MnR.
    """
    metrics = {f"{direction}/R@{k}": 100 * expected_hits(ranks.double(), ties, k).mean().item() for k in (1, 5, 10)}
    finite = ranks.clamp(max=gallery_size).sort().values
    middle = len(finite) // 2
    metrics[f"{direction}/MdR"] = ((finite[middle] + finite[~middle]) / 2).item()
    metrics[f"{direction}/MnR"] = finite.mean().item()
    return metrics


def chance(num_clips: int) -> dict[str, float]:
    """Returns the expectation of `retrieval_metrics` for random scores, where every rank is equally likely."""
    metrics = {f"{d}/R@{k}": 100 * min(k / num_clips, 1.0) for d in ("t2v", "v2t") for k in (1, 5, 10)}
    return metrics | {f"{d}/{name}": (num_clips + 1) / 2 for d in ("t2v", "v2t") for name in ("MdR", "MnR")}
