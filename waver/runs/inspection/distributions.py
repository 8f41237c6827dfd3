"""Plain arrays for TensorBoard's histograms and precision-recall curves."""

import numpy as np
from jaxtyping import Bool, Float

from waver.evaluation.ranking import Ranks


def rank_distributions(ranks: Ranks) -> dict[str, Float[np.ndarray, " queries"]]:
    """Logarithm, to the base 2, of the rank of every query: 0 is right, and each step of 1 is twice as far off.

    A miss counts as the last place of the gallery, as it does in the mean rank.
    """
    places = {"t2v": ranks.t2v, "v2t": ranks.v2t}
    return {
        f"{direction}/log2_rank": np.log2(rank.cpu().numpy().clip(max=len(ranks.v2t)))
        for direction, rank in places.items()
    }


def similarity_distributions(similarity: Float[np.ndarray, "n n"]) -> dict[str, Float[np.ndarray, " values"]]:
    """Similarities of pairs that belong together (the diagonal) and of those that do not."""
    right = np.eye(len(similarity), dtype=bool)
    return {"similarity/positive": similarity[right], "similarity/negative": similarity[~right]}


def pr_curve(
    similarity: Float[np.ndarray, "n n"],
) -> tuple[Bool[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
    """(labels, predictions) of all pairs: does this caption belong to this clip, judged by one threshold for all?

    TensorBoard sets 127 thresholds evenly in [0, 1], and cosines keep to a small part of that; so the lowest similarity
    becomes 0 and the highest 1. Precision and recall do not change by it; thresholds of two evaluations are not the same
    similarities.
    """
    low, high = similarity.min(), similarity.max()
    predictions = (similarity - low) / (high - low) if high > low else np.zeros_like(similarity)
    return np.eye(len(similarity), dtype=bool).ravel(), predictions.clip(0, 1).ravel()
