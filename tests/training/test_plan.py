import numpy as np
import pyarrow as pa
import pytest

from waver.data.epochs import epoch_batches
from waver.training.plan import (
    BatchSizeError,
    batch_size_of,
    captions_of_clips,
    count_shared_captions,
    describe_lowered_batch,
    describe_shared_captions,
    pairs_per_epoch,
    plan_epoch,
    training_rows,
)


def test_a_batch_has_all_clips_if_they_are_fewer_than_configured(load_tiny):
    config = load_tiny(**{"train.global_batch_size": 6})
    two_each = [np.full(clips, 2) for clips in (2, 5, 6, 7)]
    assert [batch_size_of(config, counts) for counts in two_each] == [2, 5, 6, 6]
    assert [bool(describe_lowered_batch(config, counts)) for counts in two_each] == [True, True, False, False]
    assert describe_lowered_batch(config, two_each[1]).endswith("it is lowered to 5")


def test_too_few_clips_for_a_batch_or_for_the_workers_are_errors(load_tiny):
    with pytest.raises(BatchSizeError, match=r"too few training clips \(1\)"):
        batch_size_of(load_tiny(), np.array([3]))
    config = load_tiny(**{"resources.workers": {"min": 1, "max": 3}})
    assert batch_size_of(config, np.ones(3, int)) == 3
    with pytest.raises(BatchSizeError, match=r"resources.workers = 3 is more than the 2 training clips.*set it to 2"):
        batch_size_of(config, np.ones(2, int))


def test_captions_that_several_clips_share_are_counted_as_the_model_reads_them(load_tiny):
    long = " ".join("abcdefghijklm")
    texts = {
        "a dog runs": "v0",
        "A  dog RUNS": "v1",  # the same tokens
        "a cat runs": "v1",
        f"{long} one": "v2",
        f"{long} two": "v0",  # equal once they are cut
        "a cow": "v3",
    }
    captions = pa.table({"caption": [*texts, "a cow"], "clip_id": [*texts.values(), "v3"]})  # twice on one clip
    config = load_tiny()
    assert count_shared_captions(config, captions, np.arange(7)) == 4
    assert count_shared_captions(config, captions, np.array([0, 2, 3, 5, 6])) == 0
    assert count_shared_captions(load_tiny(**{"text.max_words": 20}), captions, np.arange(7)) == 2
    text = describe_shared_captions(config, 4, 7)
    assert text.startswith("4 of 7 training captions stand on more than one clip")
    assert "the caption counts as wrong" in text
    ignored = load_tiny(**{"loss.shared_captions": "ignored"})
    assert "left out of the negatives" in describe_shared_captions(ignored, 4, 7)
    assert describe_shared_captions(config, 0, 7) == ""


def test_batches_of_all_captions_are_smaller_where_a_clip_has_many(load_tiny):
    config = load_tiny(**{"train.captions_per_clip": None, "train.global_batch_size": 6})
    for counts, expected in (([2] * 7, 6), ([2] * 5, 5), ([1, 2, 3, 1, 2, 3, 1], 6), ([9, 5, 5, 5, 3, 2, 2, 1], 4)):
        num_captions = np.array(counts)
        size = batch_size_of(config, num_captions)
        assert size == expected
        clips = np.repeat(np.arange(len(counts)), num_captions)
        found = epoch_batches(clips, epoch=0, seed=0, global_batch_size=6, captions_per_clip=None)
        assert max(map(len, found)) <= size
        assert bool(describe_lowered_batch(config, num_captions)) == (size < 6)
    text = describe_lowered_batch(config, num_captions)
    assert text.startswith("an epoch of all 32 captions needs 9 batches")
    assert "train.global_batch_size = 6 is lowered to 4" in text
    with pytest.raises(
        BatchSizeError, match=r"a clip has 9 of the 12 training captions.* would have only 1 pair: .*such as 1"
    ):
        batch_size_of(config, np.array([9, 1, 1, 1]))
    assert batch_size_of(load_tiny(**{"train.global_batch_size": 6}), np.array([9, 1, 1, 1])) == 4


def test_an_epoch_has_all_captions_or_so_many_of_each_clip(load_tiny, captions, store):
    rows = training_rows(captions, store)
    counts = captions_of_clips(captions, rows)
    for asked, expected in (("all", counts.sum()), (None, counts.sum()), (3, 3 * len(counts))):
        config = load_tiny(**{"train.captions_per_clip": asked})
        plan = plan_epoch(config, captions, rows, epoch=1)
        assert sum(map(len, plan)) == pairs_per_epoch(config, len(counts), len(rows)) == expected
        if asked != 3:
            assert sorted(np.concatenate(plan)) == sorted(rows)
    assert load_tiny(**{"train.captions_per_clip": "all"}).train.captions_per_clip is None
