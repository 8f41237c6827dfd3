"""Each interaction against a direct computation with loops, in float64."""

import math

import pytest
import torch

from waver.model.embeddings import Embeddings
from waver.model.interaction import CrossEncoder, WeightHead, dp, last_token, uniform_weights, wti, xclip


def embeddings(num: int, lengths: list[int], seed: int, width: int = 8) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    values = torch.randn(num, max(lengths), width, generator=generator, dtype=torch.float64)
    weights = torch.rand(mask.shape, generator=generator, dtype=torch.float64).masked_fill(~mask, 0)
    return Embeddings(values, mask, weights / weights.sum(1, keepdim=True))


TEXT, VIDEO = embeddings(4, [5, 3, 1, 4], seed=1), embeddings(3, [2, 4, 3], seed=2)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


def naive_wti(text: Embeddings, video: Embeddings) -> torch.Tensor:
    result = torch.zeros(len(text), len(video), dtype=torch.float64)
    for t in range(len(text)):
        for v in range(len(video)):
            words = [n for n in range(text.mask.shape[1]) if text.mask[t, n]]
            frames = [f for f in range(video.mask.shape[1]) if video.mask[v, f]]
            c = {(n, f): cosine(text.values[t, n], video.values[v, f]) for n in words for f in frames}
            forward = sum(float(text.weights[t, n]) * max(c[n, f] for f in frames) for n in words)
            backward = sum(float(video.weights[v, f]) * max(c[n, f] for n in words) for f in frames)
            result[t, v] = (forward + backward) / 2
    return result


def test_wti_equals_its_formula():
    torch.testing.assert_close(wti(TEXT, VIDEO), naive_wti(TEXT, VIDEO))


def test_padding_cannot_win_where_all_cosines_are_negative():
    # All words point one way and all frames the other: a padded 0 would be the largest cosine.
    one = torch.ones(1, 3, 4, dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    text = Embeddings(one, mask, uniform_weights(mask).double())
    video = Embeddings(-one * mask[..., None], mask, uniform_weights(mask).double())
    torch.testing.assert_close(wti(text, video), torch.full((1, 1), -1.0, dtype=torch.float64))


@pytest.mark.parametrize("interaction", [dp, wti, xclip])
def test_values_behind_the_mask_are_never_read(interaction):
    def scrambled(e: Embeddings) -> Embeddings:
        return Embeddings(e.values.masked_fill(~e.mask[..., None], 1e3), e.mask, e.weights)

    torch.testing.assert_close(interaction(scrambled(TEXT), scrambled(VIDEO)), interaction(TEXT, VIDEO))


def test_dp_is_the_cosine_of_the_end_token_and_the_mean_normalised_frame():
    result = dp(TEXT, VIDEO)
    for t, length in enumerate([5, 3, 1, 4]):
        for v, frames in enumerate([2, 4, 3]):
            rows = VIDEO.values[v, :frames]
            mean = (rows / rows.norm(dim=1, keepdim=True)).mean(0)
            assert result[t, v].item() == pytest.approx(cosine(TEXT.values[t, length - 1], mean))


def attend(cosines: list[float]) -> float:
    """Attention over similarities (X-CLIP, equation 7): the softmax of cosines / 0.01 weighs these cosines."""
    largest = max(cosines)
    weights = [math.exp((c - largest) / 0.01) for c in cosines]
    return sum(w * c for w, c in zip(weights, cosines, strict=True)) / sum(weights)


def test_xclip_equals_its_formula():
    result = xclip(TEXT, VIDEO)
    for t, num_words in enumerate([5, 3, 1, 4]):
        for v, num_frames in enumerate([2, 4, 3]):
            words, frames = TEXT.values[t, :num_words], VIDEO.values[v, :num_frames]
            sentence, mean = words[-1], (frames / frames.norm(dim=1, keepdim=True)).mean(0)
            matrix = [[cosine(word, frame) for frame in frames] for word in words]
            by_words = attend([attend(row) for row in matrix])
            by_frames = attend([attend(list(column)) for column in zip(*matrix, strict=True)])
            parts = [
                cosine(sentence, mean),
                attend([cosine(word, mean) for word in words]),
                attend([cosine(sentence, frame) for frame in frames]),
                (by_words + by_frames) / 2,
            ]
            assert result[t, v].item() == pytest.approx(sum(parts) / 4)


def test_last_token():
    assert torch.equal(last_token(TEXT.values, TEXT.mask)[1], TEXT.values[1, 2])


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_weights_are_a_distribution_over_valid_tokens(num_layers):
    head = WeightHead(8, num_layers).double()
    weights = head.weights(TEXT.values, TEXT.mask)
    torch.testing.assert_close(weights.sum(1), torch.ones(4, dtype=torch.float64))
    assert (weights[~TEXT.mask] == 0).all()
    assert sum(isinstance(layer, torch.nn.Linear) for layer in head) == num_layers


def test_cross_encoder_scores_pairs_one_by_one():
    cross = CrossEncoder(8, num_layers=2, num_heads=2).double()
    together = cross(TEXT, VIDEO)
    for t in range(4):
        for v in range(3):
            # Alone, and without the padding.
            length = int(VIDEO.mask[v].sum())
            video = VIDEO[v : v + 1].map(lambda tensor, length=length: tensor[:, :length])
            torch.testing.assert_close(cross(TEXT[t : t + 1], video)[0, 0], together[t, v])


@pytest.mark.parametrize("interaction", [wti, xclip])
def test_gradients_are_finite_with_padding(interaction):
    values = TEXT.values.clone().requires_grad_()
    interaction(Embeddings(values, TEXT.mask, TEXT.weights), VIDEO).sum().backward()
    assert values.grad.isfinite().all()
    assert (values.grad[~TEXT.mask] == 0).all()
