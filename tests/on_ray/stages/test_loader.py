import numpy as np
from ray.data import DataContext

from waver.benchmarks.training_input import COPY, LOADERS, THREADS, measure_input
from waver.on_ray.stages.loader import clip_stream


def test_large_batches_are_not_split(store):
    context = DataContext.get_current()
    context.target_max_block_size = 1000  # smaller than a clip, as 128 MiB (the default) is smaller than a large batch
    clip_ids = store.ok_clip_ids()
    read = list(clip_stream(store, [clip_ids[:9], clip_ids[9:14]], loaders=1))
    assert [len(num_frames) for _, num_frames in read] == [9, 5]


def test_batches_are_in_order_and_equal_those_of_the_store(store):
    clip_ids = store.ok_clip_ids()
    batches = [clip_ids[start : start + 3] for start in range(0, 15, 3)] * 2 + [[clip_ids[-1]]]
    read = list(clip_stream(store, batches, loaders=2))
    assert len(read) == len(batches)
    for (frames, num_frames), batch in zip(read, batches, strict=True):
        expected_frames, expected_num_frames = store.read(batch)
        np.testing.assert_array_equal(frames, expected_frames)
        np.testing.assert_array_equal(num_frames, expected_num_frames)
        assert frames.flags.writeable


def test_the_benchmark_measures_loaders_beside_threads_and_a_copy(tmp_path):
    stores = [("raw", False), ("jpeg", True)]
    sizes = {"num_clips": 12, "batch_size": 4, "repeats": 2, "loaders": 1, "shape": (2, 16)}
    found = list(measure_input(tmp_path, stores=stores, **sizes))
    assert [(speed.frame_format, speed.is_cold, speed.way) for speed in found] == [
        (*store, way) for store in stores for way in (THREADS, COPY, LOADERS)
    ]
    assert all(len(speed.clips_per_s) == 2 and min(speed.clips_per_s) > 0 for speed in found)
    assert all(min(speed.start_s) > 0 for speed in found)
    assert all(speed.of_copy == (1.0, 1.0) for speed in found if speed.way == COPY)
