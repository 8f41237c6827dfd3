"""Computes the arrays of TensorBoard's histograms and precision-recall curves."""

import numpy as np
from jaxtyping import Bool, Float

from waver.evaluation.ranking import Ranks


def rank_distributions(ranks: Ranks) -> dict[str, Float[np.ndarray, " queries"]]:
    """Returns the binary logarithm of the rank of every query, in both directions: 0 is rank 1.

    A query whose clip could not be decoded has the last rank of the gallery, as in the mean rank.
    """
    ranks_of = {"t2v": ranks.t2v, "v2t": ranks.v2t}
    return {
        f"{direction}/log2_rank": np.log2(rank.cpu().numpy().clip(max=len(ranks.v2t)))
        for direction, rank in ranks_of.items()
    }


def similarity_distributions(similarity: Float[np.ndarray, "n n"]) -> dict[str, Float[np.ndarray, " values"]]:
    """Returns the similarities of matching pairs (the diagonal) and of all others."""
    positive = np.eye(len(similarity), dtype=bool)
    return {"similarity/positive": similarity[positive], "similarity/negative": similarity[~positive]}


def pr_curve(
    similarity: Float[np.ndarray, "n n"],
) -> tuple[Bool[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
    """Returns labels and predictions of all pairs, for the task of telling matching pairs by one threshold.

    Similarities are rescaled so that the lowest is 0 and the highest 1, because TensorBoard spreads 127 thresholds evenly
    over [0, 1]. This leaves the curve unchanged, but thresholds of two evaluations are different similarities.
    """
    low, high = similarity.min(), similarity.max()
    predictions = (similarity - low) / (high - low) if high > low else np.zeros_like(similarity)
    return np.eye(len(similarity), dtype=bool).ravel(), predictions.clip(0, 1).ravel()
