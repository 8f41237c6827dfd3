import numpy as np
import torch
from torch.utils.tensorboard.summary import compute_curve

from waver.evaluation.ranking import Ranks
from waver.runs.inspection.distributions import pr_curve, rank_distributions, similarity_distributions

SIMILARITY = np.array([[0.3, 0.1, 0.2], [0.25, 0.2, 0.1], [0.1, 0.15, 0.35]], np.float32)


def test_log2_rank_of_a_miss_is_that_of_the_last_rank():
    ranks = Ranks(
        torch.tensor([1.0, 2.0, 4.0, torch.inf]).double(),
        torch.ones(8).double(),
        torch.zeros(4).long(),
        torch.zeros(8).long(),
    )
    found = rank_distributions(ranks)
    assert found["t2v/log2_rank"].tolist() == [0, 1, 2, 3]
    assert found["v2t/log2_rank"].tolist() == [0] * 8


def test_similarities_are_split_into_positive_and_negative():
    found = similarity_distributions(SIMILARITY)
    np.testing.assert_array_equal(found["similarity/positive"], np.float32([0.3, 0.2, 0.35]))
    np.testing.assert_array_equal(np.sort(found["similarity/negative"]), np.float32([0.1, 0.1, 0.1, 0.15, 0.2, 0.25]))


def test_rescaling_keeps_precision_and_recall():
    labels, predictions = pr_curve(SIMILARITY)
    assert predictions.min() == 0
    assert predictions.max() == 1
    _, _, _, _, precision, recall = compute_curve(labels, predictions, num_thresholds=127)
    shown = {(round(float(p), 6), round(float(r), 6)) for p, r in zip(precision, recall, strict=True)}
    for threshold in np.unique(SIMILARITY):
        found = threshold <= SIMILARITY
        right = np.trace(found)
        assert (round(right / found.sum(), 6), round(right / 3, 6)) in shown


def test_equal_scores_have_predictions():
    labels, predictions = pr_curve(np.full((2, 2), 0.5, np.float32))
    assert labels.tolist() == [True, False, False, True]
    assert predictions.tolist() == [0] * 4
    assert len(similarity_distributions(np.ones((1, 1), np.float32))["similarity/negative"]) == 0
