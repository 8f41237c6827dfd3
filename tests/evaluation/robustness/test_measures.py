import itertools

import numpy as np
import pytest

from waver.evaluation.robustness.measures import (
    Answers,
    average_overlap,
    compute_style_metrics,
    compute_version_metrics,
    hubness,
    jaccard,
    log_rank,
    mean_ratio,
    quotient_ratio,
)

INF = float("inf")


def answers_of(ranks, num_clips=20, seed=0):
    """Lists of the first ten answers that agree with ranks; clip i is asked for by query i // 3."""
    rng = np.random.default_rng(seed)
    top = np.stack([rng.permutation(num_clips)[:10] for _ in ranks])
    available, num_queries = np.ones(num_clips, dtype=bool), len(ranks)
    return Answers(
        np.array(ranks, dtype=float), top, available, np.zeros(num_queries, int), np.zeros(num_queries, dtype=bool)
    )


def naive_overlap(first, second, depth):
    return sum(len(set(first[:d]) & set(second[:d])) / d for d in range(1, depth + 1)) / depth


def test_average_overlap_by_hand():
    first = np.array([[0, 1, 2]])
    assert average_overlap(first, np.array([[0, 1, 2]]), 3) == pytest.approx([1])
    assert average_overlap(first, np.array([[3, 4, 5]]), 3) == pytest.approx([0])
    # Depth 1: nothing shared; 2: both; 3: two of three.
    assert average_overlap(first, np.array([[1, 0, 5]]), 3) == pytest.approx([(0 + 1 + 2 / 3) / 3])
    assert jaccard(first, np.array([[1, 0, 5]]), 3) == pytest.approx([2 / 4])


def test_agreement_is_that_of_a_naive_computation():
    rng = np.random.default_rng(0)
    first, second = (np.stack([rng.permutation(15)[:10] for _ in range(50)]) for _ in range(2))
    for a, b, overlap, share in zip(first, second, average_overlap(first, second), jaccard(first, second), strict=True):
        assert overlap == pytest.approx(naive_overlap(a, b, 10))
        assert share == pytest.approx(len(set(a) & set(b)) / len(set(a) | set(b)))


def test_a_gallery_smaller_than_the_depth_can_still_agree():
    first, second = np.array([[0, 1, 2, -1, -1]]), np.array([[0, 2, 1, -1, -1]])
    assert average_overlap(first, first, 5) == pytest.approx([1])
    assert average_overlap(first, second, 5) == pytest.approx([naive_overlap([0, 1, 2], [0, 2, 1], 3)])
    assert jaccard(first, second, 5) == pytest.approx([1])


def test_a_miss_ranks_last_in_logarithms():
    assert log_rank(np.array([1.0, 3.0, INF]), 7) == pytest.approx([1, 2, 3])


def test_figures_are_means_and_quotients_of_sums_over_videos():
    video = np.array([0, 0, 2])
    ratio = mean_ratio(np.array([1.0, 0.0, 1.0]), video, 4)
    assert ratio.numerator.tolist() == [1, 0, 1, 0]
    assert ratio.denominator.tolist() == [2, 0, 1, 0]
    assert ratio.value == pytest.approx(2 / 3)
    below = mean_ratio(np.array([1.0, 1.0, 1.0]), video, 4)
    assert quotient_ratio(ratio, below).value == pytest.approx(2 / 3)
    assert np.isnan(mean_ratio(np.zeros(0), np.zeros(0, dtype=int), 4).value)


#           references       versions: of clip 0 two, of clip 1 one, of clip 2 two
RANKS = [1.0, 4.0, 20.0, 1.0, 2.0, 1.0, INF, 7.0]
CLIP = np.array([0, 1, 2, 0, 0, 1, 2, 2])
VIDEO = np.array([0, 1, 1, 0, 0, 1, 1, 1])
REFERENCE = np.array([0, 1, 2, 0, 0, 1, 2, 2])
VERSIONS = np.arange(3, 8)


def test_versions_of_a_caption_by_hand():
    metrics = compute_version_metrics(answers_of(RANKS), VERSIONS, REFERENCE[VERSIONS], CLIP, VIDEO)
    assert (metrics.num_clips, metrics.num_versions) == (3, 5)
    assert {k: ratio.value for k, ratio in metrics.clean.items()} == pytest.approx({1: 1 / 3, 5: 2 / 3, 10: 2 / 3})
    assert {k: f.value for k, f in metrics.worst_case.items()} == pytest.approx({1: 0, 5: 2 / 3, 10: 2 / 3})
    assert {k: f.value for k, f in metrics.best_case.items()} == pytest.approx({1: 2 / 3, 5: 2 / 3, 10: 1})
    # Clip 0: one of two versions changed; clip 1: its only one; clip 2: none.
    assert metrics.flip_rate.value == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert {k: f.value for k, f in metrics.consistent.items()} == pytest.approx(
        {1: (1 / 2 + 0 + 0) / 3, 5: (1 + 1 + 0) / 3, 10: (1 + 1 + 0) / 3}
    )
    spreads = [np.std(np.log2([2, 2, 3])), np.std(np.log2([5, 2])), np.std(np.log2([21, 21, 8]))]
    assert metrics.spread == pytest.approx(spreads)
    assert metrics.dispersion.value == pytest.approx(np.mean(spreads))


def test_agreement_of_versions_is_a_mean_over_clips():
    answers = answers_of(RANKS)
    metrics = compute_version_metrics(answers, VERSIONS, REFERENCE[VERSIONS], CLIP, VIDEO)
    by_clip = [
        np.mean([naive_overlap(answers.top[v], answers.top[REFERENCE[v]], 10) for v in VERSIONS if CLIP[v] == clip])
        for clip in range(3)
    ]
    assert metrics.overlap.value == pytest.approx(np.mean(by_clip))


def test_a_collapsed_model_agrees_with_itself_and_is_correct_by_chance():
    top = np.tile(np.arange(10), (8, 1))
    collapsed = Answers(np.full(8, 10.5), top, np.ones(20, dtype=bool), np.full(8, 19), np.zeros(8, dtype=bool))
    metrics = compute_version_metrics(collapsed, VERSIONS, REFERENCE[VERSIONS], CLIP, VIDEO)
    assert metrics.overlap.value == metrics.jaccard.value == 1
    assert metrics.flip_rate.value == 0
    assert metrics.dispersion.value == pytest.approx(0, abs=1e-9)
    assert metrics.worst_case[10].value == metrics.best_case[10].value == metrics.clean[10].value == 0.5
    assert metrics.clean[1].value == pytest.approx(1 / 20)


def test_a_style_by_hand():
    answers = answers_of(RANKS)
    metrics = compute_style_metrics(answers, VERSIONS, REFERENCE[VERSIONS], CLIP, VIDEO)
    assert (metrics.num_queries, metrics.num_clips) == (5, 3)
    assert {k: ratio.value for k, ratio in metrics.recall.items()} == pytest.approx({1: 2 / 5, 5: 3 / 5, 10: 4 / 5})
    assert {k: f.value for k, f in metrics.reference_recall.items()} == pytest.approx({1: 2 / 5, 5: 3 / 5, 10: 3 / 5})
    assert metrics.change[10].value == pytest.approx(1 / 5)
    assert metrics.relative.value == pytest.approx(1)
    assert metrics.mrr.value == pytest.approx((1 + 1 / 2 + 1 + 0 + 1 / 7) / 5)
    assert metrics.median_rank == 2
    same = [answers.top[v, 0] == answers.top[REFERENCE[v], 0] for v in VERSIONS]
    assert metrics.first_kept.value == pytest.approx(np.mean(same))


def test_hubness_is_the_skewness_of_how_often_a_clip_is_answered():
    # Clip 0 is among the answers of all four queries, five others once or twice, the last cannot be answered.
    top = np.array([[0, 1], [0, 2], [0, 3], [0, 4]])
    available = np.array([True] * 6 + [False])
    counts = np.array([4, 1, 1, 1, 1, 0])
    expected = np.mean((counts - counts.mean()) ** 3) / np.std(counts) ** 3
    assert hubness(top, available) == pytest.approx(expected)
    every_pair = np.array(list(itertools.permutations(range(3), 2)))
    assert np.isnan(hubness(every_pair, np.ones(3, dtype=bool)))
