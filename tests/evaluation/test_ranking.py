import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from waver.evaluation.metrics import chance, retrieval_metrics
from waver.evaluation.ranking import EvaluationError, Workers, rank_similarity, rank_tiles, row_chunks

INF = float("inf")


def naive_ranks(similarity, clip_of_text, available, excused=()):
    """The definition in the module's docstring, word by word; `excused` are (text, clip)."""
    num_texts, num_clips = similarity.shape

    def rank(right, others):
        return 1 + sum(o > right for o in others) + sum(o == right for o in others) / 2

    def score(t, c):
        return similarity[t, c].item() if available[c] else -INF

    t2v, v2t = [], []
    for t in range(num_texts):
        right = clip_of_text[t].item()
        others = [score(t, c) for c in range(num_clips) if c != right and (t, c) not in excused]
        t2v.append(rank(score(t, right), others) if available[right] else INF)
    for c in range(num_clips):
        own = max(score(t, c) for t in range(num_texts) if clip_of_text[t] == c)
        groups = [
            [t for t in range(num_texts) if clip_of_text[t] == g and (t, c) not in excused] for g in range(num_clips)
        ]
        others = [max(score(t, c) for t in group) for g, group in enumerate(groups) if g != c and group]
        v2t.append(rank(own, others) if available[c] else INF)
    return torch.tensor(t2v), torch.tensor(v2t)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=9),
    chunk_size=st.integers(1, 12),
    levels=st.integers(2, 6),
    num_workers=st.integers(1, 3),
    num_excused=st.integers(0, 4),
    seed=st.integers(0, 10**6),
)
def test_tiled_ranks_equal_naive_ranks(sizes, chunk_size, levels, num_workers, num_excused, seed, on_workers):
    """With many ties, several captions a clip, missing clips, any tile size, any number of workers."""
    generator = torch.Generator().manual_seed(seed)
    clip_of_text = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    similarity = torch.randint(0, levels, (len(clip_of_text), len(sizes)), generator=generator).float()
    available = torch.rand(len(sizes), generator=generator) > 0.2
    drawn = torch.stack([torch.randint(n, (num_excused,), generator=generator) for n in similarity.shape], dim=1)
    excused = drawn.unique(dim=0)
    pairs = set(map(tuple, excused.tolist()))

    ranks = on_workers(
        num_workers,
        lambda **who: rank_tiles(
            lambda r, c: similarity[r, c],
            clip_of_text,
            available,
            chunk_size=chunk_size,
            excused=excused,
            top_k=4,
            workers=Workers(**who),
        ),
    )
    t2v, v2t = naive_ranks(similarity, clip_of_text, available, pairs)
    torch.testing.assert_close(ranks.t2v, t2v.double())
    torch.testing.assert_close(ranks.v2t, v2t.double())
    for text, (clips, scores) in enumerate(zip(ranks.top.clips.tolist(), ranks.top.scores.tolist(), strict=True)):
        candidates = [c for c in range(len(sizes)) if available[c]]
        best = sorted(candidates, key=lambda c: (-similarity[text, c].item(), c))[:4]
        missing = 4 - len(best)
        assert clips == best + [-1] * missing
        assert scores == [similarity[text, c].item() for c in best] + [-INF] * missing
    for clip, (groups, scores) in enumerate(
        zip(ranks.top_groups.clips.tolist(), ranks.top_groups.scores.tolist(), strict=True)
    ):
        of_group = [similarity[clip_of_text == group, clip].max().item() for group in range(len(sizes))]
        best = sorted(range(len(sizes)), key=lambda g: (-of_group[g], g))[:4] if available[clip] else []
        missing = 4 - len(best)
        assert groups == best + [-1] * missing
        assert scores == [of_group[group] for group in best] + [-INF] * missing


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 3])
def test_tiled_top_clips_equal_those_of_the_matrix(num_workers, on_workers):
    similarity = torch.rand(60, 40)
    ranks = on_workers(
        num_workers,
        lambda **who: rank_tiles(
            lambda r, c: similarity[r, c],
            torch.arange(60) * 40 // 60,
            torch.ones(40, dtype=torch.bool),
            chunk_size=7,
            top_k=10,
            workers=Workers(**who),
        ),
    )
    expected = similarity.topk(10)
    assert torch.equal(ranks.top.clips, expected.indices)
    assert torch.equal(ranks.top.scores, expected.values)


def test_an_excused_answer_is_neither_right_nor_wrong():
    # Clips 0 and 1 are one video; caption 3 (of clip 2) also stands on clip 0.
    similarity = torch.tensor([[5.0, 9, 7], [8, 4, 1], [6, 1, 5], [9, 8, 7]])
    clip_of_text = torch.tensor([0, 1, 2, 2])
    plain = rank_similarity(similarity, clip_of_text)
    assert (plain.t2v.tolist(), plain.v2t.tolist()) == ([3, 2, 2, 3], [4 - 1, 3, 1.5])
    excused = torch.tensor([[0, 1], [1, 0], [3, 0]])
    ranks = rank_similarity(similarity, clip_of_text, excused=excused)
    # Clip 0 finds caption 2 of clip 2 (6) before its own (5); clip 1 both captions' best (8) before its own (4).
    assert (ranks.t2v.tolist(), ranks.v2t.tolist()) == ([2, 1, 2, 2], [2, 2, 1.5])


def test_top_clips_are_optional():
    assert rank_similarity(torch.eye(3), torch.arange(3)).top is None


def test_a_collapsed_model_is_no_better_than_chance():
    ranks = rank_similarity(torch.zeros(10, 10), torch.arange(10))
    metrics = retrieval_metrics(ranks)
    assert metrics["t2v/MnR"] == metrics["v2t/MdR"] == chance(10)["t2v/MnR"] == 5.5
    assert (metrics["t2v/R@1"], metrics["t2v/R@5"]) == (pytest.approx(10), pytest.approx(50))


def test_missing_clips_are_misses_even_in_a_tiny_gallery():
    ranks = rank_similarity(torch.eye(3), torch.arange(3), torch.tensor([True, False, False]))
    metrics = retrieval_metrics(ranks)
    assert metrics["t2v/R@10"] == metrics["v2t/R@10"] == pytest.approx(100 / 3)
    assert metrics["t2v/MnR"] == pytest.approx((1 + 3 + 3) / 3)


def test_nan_is_an_error_that_names_the_pair():
    similarity = torch.zeros(4, 4)
    similarity[3, 2] = torch.nan
    with pytest.raises(EvaluationError, match="text 3 and clip 2 is NaN"):
        rank_similarity(similarity, torch.arange(4), chunk_size=2)


def test_nan_of_a_missing_clip_does_not_matter():
    similarity = torch.eye(3)
    similarity[:, 1] = torch.nan
    assert rank_similarity(similarity, torch.arange(3), torch.tensor([True, False, True])).t2v.tolist() == [1, INF, 1]


def test_memory_is_bounded_by_tiles():
    """No tile is larger than asked for, whatever the size of the gallery; each is computed once."""
    seen = []

    def tile(rows, columns):
        seen.append((rows.start, columns.start))
        scores = torch.rand(rows.stop - rows.start, columns.stop - columns.start)
        assert max(scores.shape) <= 64
        return scores

    rank_tiles(tile, torch.arange(500), torch.ones(500, dtype=torch.bool), chunk_size=64)
    assert sorted(seen) == [(row, column) for row in range(0, 500, 64) for column in range(0, 500, 64)]


def test_row_chunks_keep_captions_of_a_clip_together():
    clip_of_text = torch.repeat_interleave(torch.arange(4), torch.tensor([3, 4, 1, 2]))
    assert row_chunks(clip_of_text, 4) == [slice(0, 3), slice(3, 7), slice(7, 10)]
    assert row_chunks(clip_of_text, 1) == [slice(0, 3), slice(3, 7), slice(7, 8), slice(8, 10)]


@pytest.mark.slow
def test_chance_equals_metrics_of_random_scores():
    ranks = [rank_similarity(torch.rand(20, 20), torch.arange(20)) for _ in range(400)]
    mean = sum(retrieval_metrics(r)["t2v/R@5"] for r in ranks) / len(ranks)
    assert mean == pytest.approx(chance(20)["t2v/R@5"], abs=1.5)
