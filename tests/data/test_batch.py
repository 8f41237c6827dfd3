import gc

import numpy as np
import pytest
import torch

from waver.data.batch import Buffers, frames_to_tensor, read_ahead
from waver.data.ledger import StoreError


def address(frames: np.ndarray) -> int:
    return frames.__array_interface__["data"][0]


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
