import numpy as np
import torch
from torch.utils.tensorboard.summary import compute_curve

from waver.evaluation.ranking import Ranks
from waver.runs.inspection.distributions import pr_curve, rank_distributions, similarity_distributions

SIMILARITY = np.array([[0.3, 0.1, 0.2], [0.25, 0.2, 0.1], [0.1, 0.15, 0.35]], np.float32)


def test_each_step_is_twice_as_far_off_and_a_miss_is_the_last_place():
    ranks = Ranks(torch.tensor([1.0, 2.0, 4.0, torch.inf]).double(), torch.ones(8).double())
    found = rank_distributions(ranks)
    assert found["t2v/log2_rank"].tolist() == [0, 1, 2, 3]
    assert found["v2t/log2_rank"].tolist() == [0] * 8


def test_similarities_of_pairs_that_belong_together():
    found = similarity_distributions(SIMILARITY)
    np.testing.assert_array_equal(found["similarity/positive"], np.float32([0.3, 0.2, 0.35]))
    np.testing.assert_array_equal(np.sort(found["similarity/negative"]), np.float32([0.1, 0.1, 0.1, 0.15, 0.2, 0.25]))


def test_precision_and_recall_are_those_of_the_similarities():
    labels, predictions = pr_curve(SIMILARITY)
    assert predictions.min() == 0
    assert predictions.max() == 1
    _, _, _, _, precision, recall = compute_curve(labels, predictions, num_thresholds=127)
    shown = {(round(float(p), 6), round(float(r), 6)) for p, r in zip(precision, recall, strict=True)}
    for threshold in np.unique(SIMILARITY):
        found = threshold <= SIMILARITY
        right = np.trace(found)
        assert (round(right / found.sum(), 6), round(right / 3, 6)) in shown


def test_scores_that_are_all_the_same():
    labels, predictions = pr_curve(np.full((2, 2), 0.5, np.float32))
    assert labels.tolist() == [True, False, False, True]
    assert predictions.tolist() == [0] * 4
    assert len(similarity_distributions(np.ones((1, 1), np.float32))["similarity/negative"]) == 0
