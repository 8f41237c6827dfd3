"""Soft targets: distributions over phrases, and the temperatures that give them a number of phrases."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from waver.data.clip_store import ClipStore
from waver.data.embedded_clips import EmbeddedClips
from waver.data.embedding_store import EmbeddingSettings, EmbeddingStore, create_embeddings, write_items
from waver.knowledge.errors import KnowledgeError
from waver.knowledge.soft_targets import FrozenEmbeddings, effective_number, find_temperature, phrase_space


def unit(seed: int, *shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_the_effective_number_of_known_distributions():
    logits = torch.tensor([[0.0, 0, 0, 0], [0, 0, -1e4, -1e4], [0, -1e4, -1e4, -1e4]])
    torch.testing.assert_close(effective_number(logits), torch.tensor([4.0, 2.0, 1.0]))


@pytest.mark.parametrize("number", [1.5, 5.0, 19.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_the_temperature_gives_the_number(number, scale):
    scores = scale * unit(0, 30, 20)
    temperature = find_temperature(scores, number)
    assert effective_number(scores.double() / temperature).mean().item() == pytest.approx(number, rel=1e-6)


def test_a_space_compares_items_less_their_mean_with_phrases():
    phrases, clips, captions = 3 * unit(1, 40, 8), unit(2, 50, 8), unit(3, 60, 8)
    pool = torch.tensor([3, 5, 8, 13, 21, 34])
    space = phrase_space(phrases, clips, captions, pool, effective_phrases=4.0)
    for logits, items, mean, temperature in (
        (space.of_clips(clips[:7], pool), clips[:7], clips.mean(0), space.clip_temperature),
        (space.of_captions(captions[:7], pool), captions[:7], captions.mean(0), space.caption_temperature),
    ):
        expected = torch.empty(7, 6)
        for i, item in enumerate(items):
            for j, phrase in enumerate(phrases[pool]):
                expected[i, j] = ((item - mean) @ (phrase / phrase.norm())) / temperature
        torch.testing.assert_close(logits, expected)
    for logits in (space.of_clips(clips, pool), space.of_captions(captions, pool)):
        assert effective_number(logits.double()).mean().item() == pytest.approx(4, rel=1e-4)
    assert space.clip_temperature != space.caption_temperature


def test_a_hub_does_not_lead_for_every_clip():
    """A phrase near the mean of all clips is the best of each without the mean, and of few with it."""
    centre = unit(4, 1, 16)
    clips = F.normalize(3 * centre + unit(5, 200, 16), dim=-1)
    phrases = torch.cat([centre, F.normalize(centre + unit(6, 30, 16), dim=-1)])
    pool = torch.arange(31)
    space = phrase_space(phrases, clips, clips, pool, effective_phrases=5.0)
    led = (clips @ space.phrases.T).argmax(1).eq(0).float().mean()
    leads = space.of_clips(clips, pool).argmax(1).eq(0).float().mean()
    assert led > 0.9
    assert leads < 0.1


def test_too_few_phrases_are_told():
    with pytest.raises(KnowledgeError, match=r"knowledge\.effective_phrases = 5, but the clips of a batch have only 4"):
        phrase_space(unit(1, 9, 8), unit(2, 5, 8), unit(3, 5, 8), torch.arange(4), effective_phrases=5.0)


def test_frozen_embeddings_are_mean_frames_and_end_tokens(tmp_path, store: ClipStore):
    rng, clips = np.random.default_rng(0), ["v01", "v02"]
    frames = [rng.standard_normal((length, 4)).astype(np.float32) for length in (2, 3)]
    tokens = {"a dog": 3 * rng.standard_normal((4, 4)).astype(np.float32), "a": rng.standard_normal((3, 4), np.float32)}
    for kind, items in (
        (
            "frames",
            [(clip, store.blocks_of([clip])[clip], of_clip) for clip, of_clip in zip(clips, frames, strict=True)],
        ),
        ("tokens", [(caption, "", values) for caption, values in tokens.items()]),
    ):
        settings = EmbeddingSettings(kind, 4, "fp32", "tower", {})
        create_embeddings(tmp_path / kind, settings)
        write_items(tmp_path / kind, settings, items)
    stores = EmbeddedClips(store, EmbeddingStore(tmp_path / "frames"), EmbeddingStore(tmp_path / "tokens"))
    frozen = FrozenEmbeddings(stores, max_words=8)
    for clip, found, values in zip(clips, frozen.clips(clips), frames, strict=True):
        mean = np.mean([frame / np.linalg.norm(frame) for frame in values], axis=0)
        np.testing.assert_allclose(found, mean / np.linalg.norm(mean), rtol=1e-5, err_msg=clip)
    for found, values in zip(frozen.captions(list(tokens)), tokens.values(), strict=True):
        np.testing.assert_allclose(found, values[-1] / np.linalg.norm(values[-1]), rtol=1e-5)
