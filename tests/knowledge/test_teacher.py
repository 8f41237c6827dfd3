import numpy as np
import pytest
import torch
import torch.nn.functional as F

from waver.knowledge.teacher import CLIPS_PER_BLOCK, Teacher, best_phrases, match_clips, mean_frames
from waver.model.pretrained.weights import load_backbone
from waver.model.tokenizer import find_tokenizer

PROMPT = "This is a video about {}."
PHRASES = ["riding a horse", "run", "putting a very small cake into an old oven", "playing!", "é"]
CLIP = find_tokenizer("ViT-B-32")


@pytest.fixture
def backbone(tiny_config, teacher_weights):
    return load_backbone(tiny_config.model.backbone, str(teacher_weights), image_size=16)


@pytest.fixture
def teacher(backbone) -> Teacher:
    return Teacher(backbone, CLIP, PROMPT)


@pytest.fixture
def exact(backbone) -> Teacher:
    """In float64, where what is the same differs by less than 1e-12."""
    return Teacher(backbone.double(), CLIP, PROMPT)


def embed_clips(teacher: Teacher, clips: list[torch.Tensor]) -> torch.Tensor:
    """Embeds clips, uint8 (F, 3, H, W) each, whose frames are stored like in the clip store, behind them arbitrary ones."""
    frames = torch.full((len(clips), max(map(len, clips)), 3, 16, 16), 77, dtype=torch.uint8)
    for place, clip in zip(frames, clips, strict=True):
        place[: len(clip)] = clip
    return teacher.embed_clips(frames.permute(0, 1, 3, 4, 2).numpy(), np.array([len(clip) for clip in clips]))


def frames_of(num_frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_frames, 3, 16, 16), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def test_a_phrase_is_the_end_token_of_its_sentence(backbone, exact):
    embedded = exact.embed_phrases(PHRASES)
    assert embedded.shape == (5, 32)
    for phrase, values in zip(PHRASES, embedded, strict=True):
        ids, mask = CLIP([f"This is a video about {phrase}."], max_words=77)
        # open_clip's own way: the text tower over the whole context, then the token with the highest number, the end.
        torch.testing.assert_close(values, backbone.clip.encode_text(ids)[0], rtol=0, atol=1e-12)
        alone = backbone.encode_tokens(ids[:, : int(mask.sum())], mask[:, : int(mask.sum())])[0, -1]
        torch.testing.assert_close(values, alone, rtol=0, atol=1e-12)


def test_phrase_embedding_does_not_depend_on_its_batch(exact):
    together = exact.embed_phrases(PHRASES)
    for number, phrase in enumerate(PHRASES):
        torch.testing.assert_close(exact.embed_phrases([phrase])[0], together[number], rtol=0, atol=1e-12)
    torch.testing.assert_close(exact.embed_phrases(PHRASES[::-1]).flip(0), together, rtol=0, atol=1e-12)


def test_single_precision_is_as_exact_as_it_can_be(backbone, teacher):
    single = F.normalize(teacher.embed_phrases(PHRASES), dim=-1)
    double = F.normalize(Teacher(backbone.double(), CLIP, PROMPT).embed_phrases(PHRASES), dim=-1)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-6)


def test_the_prompt_matters(backbone, teacher):
    assert not torch.allclose(
        Teacher(backbone, CLIP, "{}").embed_phrases(PHRASES), teacher.embed_phrases(PHRASES), atol=1e-3
    )


def test_a_phrase_that_is_too_long_keeps_its_end(backbone, teacher):
    long = teacher.embed_phrases(["very " * 200 + "long"])
    with torch.no_grad():
        ids, _ = CLIP(["This is a video about " + "very " * 200 + "long."], max_words=77)
        torch.testing.assert_close(long, backbone.clip.encode_text(ids), rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_frames", [1, 3])
@torch.no_grad()
def test_a_clip_is_the_mean_of_its_frames_directions(backbone, teacher, num_frames):
    frames = frames_of(num_frames)
    expected = torch.zeros(32)
    for frame in frames:
        pixels = (frame / 255 - backbone.pixel_mean) / backbone.pixel_std
        embedded = backbone.clip.encode_image(pixels[None])[0]
        expected += embedded / embedded.norm() / num_frames
    torch.testing.assert_close(embed_clips(teacher, [frames])[0], expected)


def test_stored_embeddings_of_frames_give_the_same_clips():
    frames = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    clips = mean_frames(frames, np.array([1, 3]))
    assert torch.equal(clips[0], F.normalize(torch.from_numpy(frames[0, 0]), dim=0))
    directions = [frame / np.linalg.norm(frame) for frame in frames[1].astype(np.float64)]
    torch.testing.assert_close(clips[1].double(), torch.from_numpy(np.mean(directions, axis=0)), rtol=0, atol=1e-7)


def test_no_bit_of_a_clip_depends_on_the_clips_beside_it(teacher):
    """With 1 to 40 frames, so that the frames of a clip pass the backbone in one batch or in two."""
    clips = [frames_of(1 + number * 13 % 40, seed=number) for number in range(12)]
    alone = torch.cat([embed_clips(teacher, [clip]) for clip in clips])
    assert torch.equal(embed_clips(teacher, clips), alone)
    assert torch.equal(embed_clips(teacher, clips[::-1]).flip(0), alone)


def naive_best(scores: torch.Tensor, num_matches: int) -> list[list[int]]:
    """Sorts all phrases of each clip, highest scores first and equal ones by id."""
    return [sorted(range(len(row)), key=lambda i: (-row[i], i))[:num_matches] for row in scores.tolist()]


@pytest.mark.parametrize("num_matches", [1, 7, 50, 1000])
@pytest.mark.parametrize("num_phrases", [1, 5, 50, 777, 8192, 10_007])
def test_best_phrases_equal_a_naive_sort(num_phrases, num_matches):
    generator = torch.Generator().manual_seed(num_phrases)
    phrases = F.normalize(torch.randn(num_phrases, 16, dtype=torch.float64, generator=generator), dim=-1)
    clips = torch.randn(9, 16, dtype=torch.float64, generator=generator)
    ids, scores = best_phrases(clips, phrases, num_matches)
    assert ids.shape == scores.shape == (9, min(num_matches, num_phrases))
    assert ids.tolist() == naive_best(clips @ phrases.T, num_matches)
    torch.testing.assert_close(scores, (clips @ phrases.T).gather(1, ids))


def test_ties_are_sorted_by_phrase_id():
    """Exact in binary: unit vectors and a clip of powers of two, in 5 groups of 40 equal scores."""
    group = torch.arange(200) % 5
    phrases = F.one_hot(group, 8).float()
    clip = torch.tensor([[0.25, 1.0, 0.5, 1.0, -2.0, 0, 0, 0]])
    ids, scores = best_phrases(clip, phrases, 100)
    ones = [i for i in range(200) if i % 5 in (1, 3)]
    assert ids.tolist() == naive_best(clip @ phrases.T, 100)
    assert ids[0].tolist() == ones + [i for i in range(200) if i % 5 == 2][:20]
    assert scores[0].tolist() == [1.0] * 80 + [0.5] * 20


@pytest.mark.parametrize("num_levels", [1, 2, 3, 40])
@pytest.mark.parametrize(("num_phrases", "num_matches"), [(3, 5), (129, 1), (8200, 30), (20_001, 200)])
def test_ties_at_the_boundary_go_to_the_first_phrases(num_phrases, num_matches, num_levels):
    """Scores are a few small integers, exact in any order of summation: most phrases tie, across groups and products."""
    generator = torch.Generator().manual_seed(num_levels)
    level = torch.randint(num_levels, (num_phrases,), generator=generator)
    phrases, clips = torch.stack([level, -level], 1).float(), torch.tensor([[1.0, 0], [0, 1], [0, 0]])
    ids, scores = best_phrases(clips, phrases, num_matches)
    assert ids.tolist() == naive_best(clips @ phrases.T, num_matches)
    assert torch.equal(scores, (clips @ phrases.T).gather(1, ids))


@pytest.mark.parametrize("num_phrases", [5, 1000, 8195])
def test_equal_phrases_have_equal_scores_wherever_they_stand(num_phrases):
    phrases = F.normalize(torch.randn(1, 512), dim=-1).expand(num_phrases, -1)
    ids, scores = match_clips(torch.randn(3, 512), phrases, 1000)
    assert ids.tolist() == [list(range(min(num_phrases, 1000)))] * 3
    assert (scores == scores[:, :1]).all()


def test_matches_of_a_clip_do_not_depend_on_its_block():
    phrases, clips = F.normalize(torch.randn(3001, 512), dim=-1), torch.randn(2 * CLIPS_PER_BLOCK + 3, 512)
    ids, scores = match_clips(clips, phrases, 10)
    assert ids.shape == scores.shape == (len(clips), 10)
    for some in ([5], [70, 2, 130], list(range(64, 131)), list(range(len(clips)))[::-1]):
        some_ids, some_scores = match_clips(clips[some], phrases, 10)
        assert torch.equal(some_ids, ids[some])
        assert torch.equal(some_scores, scores[some])


def test_the_teacher_is_frozen(backbone):
    assert all(p.requires_grad for p in backbone.parameters())
    backbone.train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    teacher = Teacher(backbone, CLIP, PROMPT)
    embedded = [teacher.embed_phrases(PHRASES), embed_clips(teacher, [frames_of(3)])]
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(module.training for module in backbone.modules())
    assert not any(tensor.requires_grad for tensor in embedded)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_the_digest_is_of_the_weights(tiny_config, teacher_weights, backbone, teacher):
    digest = teacher.digest()
    again = load_backbone(tiny_config.model.backbone, str(teacher_weights), image_size=16)
    assert Teacher(again, CLIP, "another {}").digest() == digest
    teacher.embed_phrases(PHRASES)
    assert teacher.digest() == digest
    for parameter in (backbone.clip.logit_scale, backbone.clip.ln_final.bias, backbone.clip.token_embedding.weight):
        with torch.no_grad():
            flat = parameter.view(-1)
            kept = flat[-1].clone()
            flat[-1] = torch.nextafter(kept, torch.tensor(9.0))
            assert teacher.digest() != digest
            flat[-1] = kept
    assert teacher.digest() == digest


@pytest.mark.slow
def test_a_clip_meets_as_many_phrases_as_the_largest_dictionary_has():
    """VATEX has 108,596."""
    rng = np.random.default_rng(0)
    phrases = rng.standard_normal((110_000, 512), dtype=np.float32)
    phrases /= np.linalg.norm(phrases, axis=1, keepdims=True)
    clips = rng.standard_normal((3, 512), dtype=np.float32) / 25
    ids, scores = match_clips(torch.from_numpy(clips), torch.from_numpy(phrases), 30)
    for clip, own_ids, own_scores in zip(clips, ids, scores, strict=True):
        expected = np.concatenate([part @ clip for part in np.array_split(phrases, 11)])
        assert own_ids.tolist() == np.argsort(-expected, kind="stable")[:30].tolist()
        np.testing.assert_allclose(own_scores.numpy(), np.sort(expected)[::-1][:30], rtol=1e-5)
