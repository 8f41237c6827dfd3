import gc

import numpy as np
import pytest
import torch

from waver.data.batch import Buffers, caption_keys, frames_to_tensor, read_ahead
from waver.data.clip import Clip
from waver.data.clip_store import ClipStore, StoreSettings
from waver.data.clip_store_writer import create_store, write_block
from waver.data.ledger import DecodedClip, StoreError
from waver.tools.object_store import local_copy


def address(frames: np.ndarray) -> int:
    return frames.__array_interface__["data"][0]


def test_keys_of_captions_are_those_of_the_tokens_that_are_read():
    ids = torch.tensor([[5, 7, 9, 0], [5, 7, 9, 3], [5, 7, 0, 0], [7, 5, 9, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 1]]).bool()
    keys = caption_keys(ids, mask)
    assert keys[0] == keys[1]
    assert len(set(keys.tolist())) == 3
    assert torch.equal(caption_keys(ids[:, :3], mask), keys)
    wider = torch.cat([ids, torch.full((4, 5), 8)], 1)
    assert torch.equal(caption_keys(wider, torch.cat([mask, torch.zeros(4, 4).bool()], 1)), keys)


def test_memory_is_used_again_when_nothing_refers_to_it():
    buffers = Buffers(3, (2, 4, 4, 3))
    first = buffers.take(3)
    assert (first.shape, first.dtype) == ((3, 2, 4, 4, 3), np.uint8)
    place, tensor = address(first), torch.from_numpy(first[1:]).permute(0, 1, 4, 2, 3)[1]
    del first
    second = buffers.take(2)
    assert address(second) != place, "a tensor still shows it"
    del tensor
    third = buffers.take(2)
    assert (address(third), third.shape) == (place, (2, 2, 4, 4, 3))


def test_batches_equal_those_of_the_store_and_stay_as_they_are(store):
    clip_ids = store.ok_clip_ids()
    batches = [clip_ids[start : start + 3] for start in range(0, 15, 3)] * 2 + [[], [clip_ids[-1]]]
    read = list(read_ahead(store, batches))
    assert len(read) == len(batches)
    for (frames, num_frames), batch in zip(read, batches, strict=True):
        for found, expected in zip((frames, num_frames), store.read(batch), strict=True):
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype


def test_a_long_epoch_takes_three_batches_of_memory(store):
    places, sums = set(), []
    batches = [[clip_id] * 4 for clip_id in store.ok_clip_ids()] * 3
    for frames, mask in (frames_to_tensor(*clips) for clips in read_ahead(store, batches)):
        places.add(frames.data_ptr())
        sums.append(int(frames[mask].sum()))
    assert len(places) <= 3
    assert sums == [int(store.read(batch)[0].sum(dtype=int)) for batch in batches]


def test_an_error_is_raised_at_its_batch(store):
    clip_id = store.ok_clip_ids()[0]
    batches = read_ahead(store, [[clip_id], [clip_id, "nobody", clip_id], [clip_id]])
    assert next(batches)[1].tolist() == [1]
    with pytest.raises(StoreError, match="have no frames"):
        next(batches)
    gc.collect()


def test_a_reader_that_is_given_up_ends(store):
    batches = read_ahead(store, [store.ok_clip_ids()[:2]] * 5)
    next(batches)
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.slow
def test_threads_bring_the_files_from_an_object_store(s3, tmp_path):
    here, there = (local_copy(f"{s3}/clips", tmp_path / machine) for machine in ("here", "there"))
    settings, rng = StoreSettings(frames_per_second=1.0, max_frames=2, size=16), np.random.default_rng(0)
    create_store(here, settings)
    for block in range(3):
        clips = [Clip(rng.integers(0, 256, (2, 16, 16, 3), np.uint8), (0.0, 1.0), 25.0, 16, 16, "none") for _ in "abcd"]
        named = {f"{name}{block}": clip for name, clip in zip("abcd", clips, strict=True)}
        write_block(here, settings, [DecodedClip(name, f"{name}.mp4", 0.0, clip) for name, clip in named.items()])
    clip_ids = ClipStore(here).ok_clip_ids()
    assert len(clip_ids) == 12
    ((frames, _),) = read_ahead(ClipStore(there), [clip_ids])
    np.testing.assert_array_equal(frames, ClipStore(here).read(clip_ids)[0])
    assert {path.name for path in (there / "clips").iterdir()} == {path.name for path in (here / "clips").iterdir()}
