import pytest
import torch

from waver.evaluation.embedding import embed_tokens, similarity_in_blocks, tokenize_texts
from waver.evaluation.ranking import rank_tiles
from waver.model.embeddings import Embeddings
from waver.training.build import build_student, build_tokenizer


@pytest.fixture(params=["dp", "ti", "wti", "xclip", "xti"])
def student(request, load_tiny):
    return build_student(load_tiny(**{"similarity.kind": request.param})).eval()


def random_items(number: int, length: int, width: int) -> Embeddings:
    generator = torch.Generator().manual_seed(number)
    mask = torch.arange(length) < torch.randint(1, length + 1, (number, 1), generator=generator)
    values = torch.randn(number, length, width, generator=generator)
    return Embeddings(values, mask, mask / mask.sum(1, keepdim=True))


@pytest.mark.slow
@pytest.mark.parametrize(("num_clips", "chunk_size"), [(23, 5), (130, 128), (130, 256)])
@torch.no_grad()
def test_equal_clips_tie_wherever_they_stand(student, num_clips, chunk_size):
    text = random_items(num_clips, 12, 32)
    video = random_items(1, 3, 32)[torch.zeros(num_clips, dtype=torch.long)]
    ranks = rank_tiles(
        lambda rows, clips: similarity_in_blocks(student, text[rows], video[clips]),
        torch.arange(num_clips),
        torch.ones(num_clips, dtype=torch.bool),
        chunk_size=chunk_size,
    )
    assert ranks.t2v.unique().tolist() == [(num_clips + 1) / 2]


@pytest.mark.slow
@torch.no_grad()
def test_similarities_do_not_depend_on_the_tile(student):
    text, video = random_items(40, 12, 32), random_items(70, 3, 32)
    whole = similarity_in_blocks(student, text, video)
    assert whole.shape == (40, 70)
    torch.testing.assert_close(whole, student.similarity(text, video))
    assert torch.equal(similarity_in_blocks(student, text[slice(3, 9)], video[slice(50, 70)]), whole[3:9, 50:])


@torch.no_grad()
def test_equal_captions_have_equal_embeddings_wherever_they_stand(student, tiny_config):
    texts = ["a red ball moves", *(f"the {number} boats" for number in range(66)), "a red ball moves"]
    token_ids, mask = tokenize_texts(texts, tiny_config, build_tokenizer(tiny_config))
    whole = embed_tokens(student, token_ids, mask, tiny_config)
    assert torch.equal(whole.values[0], whole.values[-1])
    part = embed_tokens(student, token_ids[60:], mask[60:], tiny_config)
    assert torch.equal(part.values, whole.values[60:])
