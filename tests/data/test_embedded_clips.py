import pickle

import numpy as np
import pytest

from waver.data.clip import Clip
from waver.data.clip_store import ClipStore, StoreSettings
from waver.data.clip_store_writer import create_store, write_block
from waver.data.embedded_clips import EmbeddedClips, EmbeddingPaths
from waver.data.embedding_store import (
    EmbeddingError,
    EmbeddingSettings,
    EmbeddingStore,
    create_embeddings,
    write_items,
)
from waver.data.ledger import DecodedClip, StoreError

SETTINGS = StoreSettings(frames_per_second=1.0, max_frames=4, size=8)
FRAMES = EmbeddingSettings("frames", 5, "fp32", "a tower", {})
TOKENS = EmbeddingSettings("tokens", 5, "fp32", "a tower", {})


def decode(folder, *names: str) -> ClipStore:
    """Decodes clips, of 1, 2, ... frames."""
    create_store(folder, SETTINGS)
    for number, name in enumerate(names, 1):
        pixels = np.full((number, 8, 8, 3), number, np.uint8)
        clip = Clip(pixels, tuple(map(float, range(number))), 25.0, 8, 8, "test")
        write_block(folder, SETTINGS, [DecodedClip(name, f"/{name}.mp4", 0.0, clip)])
    return ClipStore(folder)


def values(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((length, 5)).astype(np.float32)


@pytest.fixture
def embedded(tmp_path) -> EmbeddedClips:
    clips = decode(tmp_path / "clips", "a", "b", "c")
    blocks = clips.blocks_of("abc")
    create_embeddings(tmp_path / "frames", FRAMES)
    write_items(tmp_path / "frames", FRAMES, [(clip, blocks[clip], values(n, n)) for n, clip in enumerate("abc", 1)])
    create_embeddings(tmp_path / "tokens", TOKENS)
    items = [("a cat", "", values(7, 3)), ("a dog runs", "", values(8, 4)), ("whole", "", values(9, 1))]
    write_items(tmp_path / "tokens", TOKENS, items)
    return EmbeddedClips(clips, EmbeddingStore(tmp_path / "frames"), EmbeddingStore(tmp_path / "tokens"))


def test_clips_are_read_like_pixels(embedded):
    frames, num_frames = embedded.read(["c", "a"])
    pixels, expected = embedded.clips.read(["c", "a"])
    assert num_frames.tolist() == expected.tolist() == [3, 1]
    assert frames.shape == (*pixels.shape[:2], 5)
    np.testing.assert_array_equal(frames[0, :3], values(3, 3))
    np.testing.assert_array_equal(frames[1, :1], values(1, 1))
    assert not frames[0, 3:].any()
    assert embedded.ok_clip_ids() == ["a", "b", "c"]
    (batch,) = embedded.read_batches([["c", "a"]])
    np.testing.assert_array_equal(batch[0], frames)


def test_a_clip_that_was_decoded_again_is_not_read_from_the_old_frames(embedded):
    again = decode(embedded.path, "b", "a")  # `b` has one frame now
    newer = EmbeddedClips(again, embedded.frames)
    newer.read(["c"])
    assert embedded.frames.missing(again.blocks_of("abc")) == ["a", "b"]
    with pytest.raises(EmbeddingError, match="'b' has no embedding"):
        newer.read(["c", "b"])


def test_a_clip_without_frames_is_an_error(embedded):
    with pytest.raises(StoreError, match="1 of 2 clips have no frames"):
        embedded.read(["a", "x"])


def test_tokens_are_padded_and_an_embedding_of_a_whole_text_stands_at_each_position(embedded):
    found = embedded.read_tokens(["a dog runs", "whole", "a cat"], 4)
    np.testing.assert_array_equal(found[0], values(8, 4))
    np.testing.assert_array_equal(found[1], np.repeat(values(9, 1), 4, axis=0))
    np.testing.assert_array_equal(found[2, :3], values(7, 3))
    assert not found[2, 3:].any()
    assert embedded.has_tokens(["a cat", "a cat"])
    assert not embedded.has_tokens(["a cat", "a cow"])


def test_without_frames_it_reads_pixels(embedded):
    only_tokens = EmbeddedClips(embedded.clips, tokens=embedded.tokens)
    for found in (only_tokens.read(["b"]), *only_tokens.read_batches([["b"]])):
        np.testing.assert_array_equal(found[0], embedded.clips.read(["b"])[0])


def test_another_process_opens_the_same_stores(embedded):
    paths = pickle.loads(pickle.dumps(EmbeddingPaths.of(embedded)))
    opened = paths.open(embedded.clips)
    np.testing.assert_array_equal(opened.read(["b"])[0], embedded.read(["b"])[0])
    np.testing.assert_array_equal(opened.read_tokens(["a cat"], 3), embedded.read_tokens(["a cat"], 3))
    assert EmbeddingPaths.of(embedded.clips).open(embedded.clips) is embedded.clips
