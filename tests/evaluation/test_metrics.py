import numpy as np
import pytest
import torch

from waver.evaluation.metrics import chance, expected_hits, retrieval_metrics
from waver.evaluation.ranking import rank_similarity


@pytest.mark.parametrize(("num_clips", "k", "expected"), [(12, 10, 100 * 10 / 12), (20, 1, 5.0), (3, 5, 100.0)])
def test_constant_scores_are_chance(num_clips, k, expected):
    metrics = retrieval_metrics(rank_similarity(torch.zeros(num_clips, num_clips), torch.arange(num_clips)))
    assert metrics[f"t2v/R@{k}"] == metrics[f"v2t/R@{k}"] == pytest.approx(expected)
    assert metrics == pytest.approx(chance(num_clips))


def test_a_missing_clip_is_a_miss_and_ties_with_nothing():
    available = torch.arange(20) != 7
    metrics = retrieval_metrics(rank_similarity(torch.zeros(20, 20), torch.arange(20), available))
    assert metrics["t2v/R@10"] == pytest.approx(100 * (19 / 20) * (10 / 19))


def test_expected_hits_equal_the_mean_over_random_orders():
    scores = np.random.default_rng(0).integers(0, 4, (30, 12)).astype(float)
    own = scores[np.arange(30), np.arange(30) % 12]
    higher, ties = (scores > own[:, None]).sum(1), (scores == own[:, None]).sum(1) - 1
    generator, found = np.random.default_rng(1), np.zeros((30, 13))
    for _ in range(4000):
        place = higher + generator.integers(0, ties + 1)
        found[np.arange(30), place] += 1
    for k in (1, 5, 10):
        hits = expected_hits(1 + higher + ties / 2, ties, k)
        assert hits == pytest.approx(found[:, :k].sum(1) / 4000, abs=0.04)


def test_without_ties_a_hit_is_a_rank_of_at_most_k():
    ranks = torch.tensor([1.0, 5.0, 6.0, torch.inf]).double()
    assert expected_hits(ranks, torch.zeros(4, dtype=torch.long), 5).tolist() == [1, 1, 0, 0]
