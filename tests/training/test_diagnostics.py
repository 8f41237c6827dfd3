import math

import pytest
import torch

from waver.model.embeddings import Embeddings
from waver.model.student import Encoded
from waver.training.diagnostics import (
    batch_diagnostics,
    effective_candidates,
    normalised_entropy,
    shared_caption_share,
    top1_accuracy,
    top1_agreement,
)


def embeddings(weights, mask):
    weights, mask = torch.tensor(weights), torch.tensor(mask)
    return Embeddings(torch.zeros(*mask.shape, 4), mask, weights)


def test_entropy_is_between_one_for_all_and_all_alike():
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0]])
    mask = torch.tensor([[True] * 4, [True] * 4, [True] * 4, [True, True, False, False]])
    expected = [1, 0, math.log(2) / math.log(4), 1]
    torch.testing.assert_close(normalised_entropy(weights, mask), torch.tensor(expected))


def test_one_token_has_no_entropy():
    assert normalised_entropy(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)).item() == 0


def test_shares_of_workers_sum_to_the_mean_over_pairs():
    text = embeddings([[0.5, 0.5], [1.0, 0.0]], [[True, True], [True, True]])
    video = embeddings([[1.0, 0.0], [1.0, 0.0]], [[True, False], [True, True]])
    whole = batch_diagnostics(Encoded(text, video, None, None), num_pairs=2, learned_weights=True)
    parts = [
        batch_diagnostics(Encoded(text[rows], video[rows], None, None), num_pairs=2, learned_weights=True)
        for rows in (slice(0, 1), slice(1, 2))
    ]
    assert {name: value.item() for name, value in whole.items()} == {
        "entropy/text_weights": pytest.approx(0.5),
        "entropy/video_weights": 0,
    }
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value)


def test_uniform_weights_have_no_diagnostic():
    text = embeddings([[0.5, 0.5]], [[True, True]])
    assert batch_diagnostics(Encoded(text, text, None, None), num_pairs=1, learned_weights=False) == {}


def test_attention_to_phrases_counts_valid_frames_alone():
    text = embeddings([[1.0, 0.0]], [[True, True]])
    video = embeddings([[0.5, 0.5, 0.0]], [[True, True, False]])
    attention = torch.tensor([[[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]])[None]
    encoded = Encoded(text, None, video, attention)  # (B, H, F, K) = (1, 2, 3, 2)
    diagnostics = batch_diagnostics(encoded, num_pairs=1, learned_weights=False)
    assert diagnostics["entropy/phrase_attention"].item() == pytest.approx((1 + 0.5) / 2)


def test_top1_agreement_is_the_share_of_equal_first_answers():
    plain = torch.tensor([[3.0, 1, 0], [0, 1, 2], [0, 5, 1]])
    informed = torch.tensor([[9.0, 1, 0], [4, 1, 2], [0, 5, 1]])
    assert top1_agreement(plain, informed, num_pairs=4)["agreement/first_answer"].item() == pytest.approx(2 / 4)


def test_accuracy_counts_own_clips_of_both_workers():
    similarity = torch.tensor([[3.0, 1, 0], [0, 1, 2], [0, 5, 6]])
    assert top1_accuracy(similarity, offset=0, num_pairs=3).item() == pytest.approx(2 / 3)
    parts = [top1_accuracy(similarity[:1], offset=0, num_pairs=3), top1_accuracy(similarity[1:], offset=1, num_pairs=3)]
    assert sum(parts).item() == pytest.approx(2 / 3)


def test_effective_candidates_are_one_for_hard_labels_and_all_for_equal_ones():
    def candidates(similarity, scale=1.0):
        both = (similarity, similarity.T)
        return effective_candidates(both, torch.tensor(scale), num_pairs=len(similarity)).item()

    assert candidates(torch.zeros(5, 5)) == pytest.approx(5)
    assert candidates(torch.eye(5), scale=100.0) == pytest.approx(1)
    assert candidates(torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)), scale=100.0) == pytest.approx(2)
    assert 1 < candidates(torch.eye(5), scale=2.0) < candidates(torch.eye(5), scale=1.0) < 5


def test_the_share_of_shared_captions_counts_no_pair_twice():
    same = torch.eye(4, dtype=torch.bool)
    same[0, 3] = same[3, 0] = True
    (share,) = shared_caption_share(same, num_pairs=4).values()
    assert share.item() == pytest.approx(2 / 12)
    parts = [next(iter(shared_caption_share(rows, num_pairs=4).values())) for rows in (same[:1], same[1:])]
    assert sum(parts).item() == pytest.approx(2 / 12)
