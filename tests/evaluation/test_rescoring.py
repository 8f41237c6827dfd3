"""DSL and QB-Norm against the few lines of their papers on whole matrices, in float64."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from waver.evaluation.ranking import EvaluationError, Workers, rank_similarity, rank_tiles
from waver.evaluation.rescoring import build_query_bank, dual_softmax_ranks, inverted_softmax_ranks


def similarity_of(texts: int, clips: int) -> torch.Tensor:
    """Scores with hubs: some clips are near to everything."""
    return torch.rand(texts, clips) / 2 + torch.rand(clips) / 4


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("chunk_size", [4, 100])
def test_dual_softmax_is_its_formula(on_workers, num_workers, chunk_size):
    similarity, everything = similarity_of(30, 30), torch.ones(30, dtype=torch.bool)
    ranks = on_workers(
        num_workers,
        lambda **who: dual_softmax_ranks(
            lambda r, c: similarity[r, c],
            torch.arange(30),
            everything,
            scale=20.0,
            chunk_size=chunk_size,
            workers=Workers(**who),
        ),
    )
    exact = similarity.double()
    assert torch.equal(ranks.t2v, rank_similarity(exact * (20 * exact).softmax(0), torch.arange(30)).t2v)
    assert torch.equal(ranks.v2t, rank_similarity(exact * (20 * exact).softmax(1), torch.arange(30)).v2t)
    assert not torch.equal(ranks.t2v, rank_similarity(similarity, torch.arange(30)).t2v)


def test_missing_clips_are_in_no_softmax():
    similarity, available = similarity_of(12, 12), torch.arange(12) != 4
    similarity[:, 4] = torch.nan
    ranks = dual_softmax_ranks(lambda r, c: similarity[r, c], torch.arange(12), available, scale=20.0, chunk_size=5)
    # All twelve texts are queries; eleven clips are.
    there = similarity[:, available].double()
    t2v, v2t = (there * (20 * there).softmax(dim) for dim in (0, 1))
    own = torch.tensor([0, 1, 2, 3, -1, 4, 5, 6, 7, 8, 9, 10])
    for text in range(12):
        expected = 1 + (t2v[text] > t2v[text, own[text]]).sum().item() if text != 4 else float("inf")
        assert ranks.t2v[text] == expected
    for clip in set(range(12)) - {4}:
        assert ranks.v2t[clip] == 1 + (v2t[:, own[clip]] > v2t[clip, own[clip]]).sum()
    assert ranks.v2t[4] == float("inf")


def test_dual_softmax_refuses_several_captions_of_a_clip():
    with pytest.raises(
        EvaluationError, match=r"6 captions for 3 clips\. Evaluate on a split with one caption per clip"
    ):
        dual_softmax_ranks(
            lambda r, c: torch.rand(6, 3)[r, c],
            torch.arange(6) // 2,
            torch.ones(3, dtype=torch.bool),
            scale=1.0,
            chunk_size=4,
        )


def naive_inverted_softmax(bank: torch.Tensor, test: torch.Tensor, beta: float, top_k: int) -> torch.Tensor:
    """Dynamic inverted softmax of a (queries, clips) matrix, as in the paper."""
    bank, test = bank.double(), test.double()
    activation_set = set(bank.topk(top_k, dim=1).indices.flatten().tolist())
    inverted = (beta * test).exp() / (beta * bank).exp().sum(0)
    rows = [inverted[i] if int(test[i].argmax()) in activation_set else test[i] for i in range(len(test))]
    return torch.stack(rows)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize(("chunk_size", "top_k"), [(7, 1), (100, 2)])
def test_inverted_softmax_is_its_formula(on_workers, num_workers, chunk_size, top_k):
    similarity, bank = similarity_of(80, 25), similarity_of(40, 25)
    bank[:, :9] -= 1  # clips that nobody in the bank finds
    clip_of_text, everything = torch.arange(80) * 25 // 80, torch.ones(25, dtype=torch.bool)

    def work(**who):
        workers = Workers(**who)
        known = build_query_bank(
            lambda r, c: bank[r, c], 40, everything, beta=20.0, top_k=top_k, chunk_size=chunk_size, workers=workers
        )
        return inverted_softmax_ranks(
            lambda r, c: similarity[r, c],
            known,
            clip_of_text,
            everything,
            beta=20.0,
            chunk_size=chunk_size,
            workers=workers,
        ).t2v

    ranks = on_workers(num_workers, work)
    expected = naive_inverted_softmax(bank, similarity, 20.0, top_k)
    assert torch.equal(ranks, rank_similarity(expected, clip_of_text).t2v)
    always = (20 * similarity.double()).exp() / (20 * bank.double()).exp().sum(0)
    assert not torch.equal(ranks, rank_similarity(always, clip_of_text).t2v)
    assert not torch.equal(ranks, rank_similarity(similarity, clip_of_text).t2v)


def test_missing_clips_are_neither_active_nor_found():
    similarity, bank, available = similarity_of(10, 10), similarity_of(9, 10), torch.arange(10) != 2
    similarity[:, 2], bank[:, 2] = 9.0, 9.0
    known = build_query_bank(lambda r, c: bank[r, c], 9, available, beta=20.0, top_k=1, chunk_size=4)
    assert not known.active[2]
    ranks = inverted_softmax_ranks(
        lambda r, c: similarity[r, c], known, torch.arange(10), available, beta=20.0, chunk_size=4
    ).t2v
    there = naive_inverted_softmax(bank[:, available], similarity[:, available], 20.0, 1)
    own = [0, 1, None, 2, 3, 4, 5, 6, 7, 8]
    expected = [
        float("inf") if clip is None else 1 + (there[text] > there[text, clip]).sum().item()
        for text, clip in enumerate(own)
    ]
    assert ranks.tolist() == expected


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that anything computes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor))])
        return result


def largest(num_clips: int) -> int:
    """Over everything that ranks, two captions a clip, in tiles of 16."""
    everything, clip_of_text = torch.ones(num_clips, dtype=torch.bool), torch.arange(num_clips).repeat_interleave(2)
    excused = torch.stack([torch.arange(num_clips), torch.arange(num_clips).flip(0)], dim=1)

    def tile(rows: slice, columns: slice) -> torch.Tensor:
        return torch.rand(rows.stop - rows.start, columns.stop - columns.start)

    with Largest() as seen:
        rank_tiles(tile, clip_of_text, everything, chunk_size=16, top_k=3, excused=excused)
        dual_softmax_ranks(tile, torch.arange(num_clips), everything, scale=9.0, chunk_size=16)
        known = build_query_bank(tile, 2 * num_clips, everything, beta=20.0, top_k=1, chunk_size=16)
        inverted_softmax_ranks(tile, known, clip_of_text, everything, beta=20.0, chunk_size=16)
    return seen.elements


@pytest.mark.slow
def test_memory_grows_with_the_sides_not_with_the_area():
    small, large = largest(32), largest(128)
    assert large <= 4 * small
    assert large < 2 * 128 * 128 / 10
