import pytest
import torch

from waver.evaluation.token_wise import token_wise
from waver.model.embeddings import Embeddings
from waver.model.interaction import wti


def random_items(number: int, length: int, width: int = 32, dtype: torch.dtype = torch.float32) -> Embeddings:
    """Items of 1 to `length` tokens with random weights."""
    generator = torch.Generator().manual_seed(number)
    mask = torch.arange(length) < torch.randint(1, length + 1, (number, 1), generator=generator)
    values = torch.randn(number, length, width, generator=generator, dtype=dtype)
    weights = torch.rand(mask.shape, generator=generator, dtype=dtype).masked_fill(~mask, 0)
    return Embeddings(values, mask, weights / weights.sum(1, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("num_texts", "num_words"), [(1, 1), (7, 5), (130, 32), (3, 300)])
@pytest.mark.parametrize(("num_clips", "num_frames"), [(1, 1), (5, 3), (130, 12)])
def test_equals_the_definition(num_texts, num_words, num_clips, num_frames, dtype):
    text, video = random_items(num_texts, num_words, dtype=dtype), random_items(num_clips, num_frames, dtype=dtype)
    found, exact = token_wise(text, video), wti(text.map(as_double), video.map(as_double))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-12)


def as_double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def test_a_score_depends_on_its_own_caption_and_clip_alone():
    text, video = random_items(150, 32, 512), random_items(130, 12, 512)
    whole = token_wise(text, video)
    for texts in ([3], [149, 20, 70], list(range(40, 150)), list(range(150))[::-1]):
        for clips in ([64], [129, 0, 5], list(range(130))[::-1]):
            part = token_wise(text[torch.tensor(texts)], video[torch.tensor(clips)])
            assert torch.equal(part, whole[texts][:, clips])


def test_equal_captions_and_equal_clips_have_equal_scores():
    places, clips = torch.randint(20, (300,)), torch.randint(10, (100,))
    scores = token_wise(random_items(20, 32, 512)[places], random_items(10, 12, 512)[clips])
    for text in range(20):
        for clip in range(10):
            assert len(scores[places == text][:, clips == clip].unique()) == 1


def test_what_is_behind_the_mask_is_never_read():
    text, video = random_items(40, 9), random_items(20, 4)
    hidden = [Embeddings(e.values.masked_fill(~e.mask[..., None], 1e3), e.mask, e.weights) for e in (text, video)]
    assert torch.equal(token_wise(*hidden), token_wise(text, video))
