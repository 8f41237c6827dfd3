import numpy as np
import pyarrow as pa
import pytest

from waver.training.plan import (
    BatchSizeError,
    batch_size_of,
    count_shared_captions,
    describe_lowered_batch,
    describe_shared_captions,
)


def test_a_batch_has_all_clips_if_they_are_fewer_than_configured(load_tiny):
    config = load_tiny(**{"train.global_batch_size": 6})
    assert [batch_size_of(config, clips) for clips in (2, 5, 6, 7)] == [2, 5, 6, 6]
    assert [bool(describe_lowered_batch(config, clips)) for clips in (2, 5, 6, 7)] == [True, True, False, False]
    assert describe_lowered_batch(config, 5).endswith("it is lowered to 5")


def test_too_few_clips_for_a_batch_or_for_the_workers_are_errors(load_tiny):
    with pytest.raises(BatchSizeError, match=r"too few training clips \(1\)"):
        batch_size_of(load_tiny(), 1)
    config = load_tiny(**{"resources.workers": {"min": 1, "max": 3}})
    assert batch_size_of(config, 3) == 3
    with pytest.raises(BatchSizeError, match=r"resources.workers = 3 is more than the 2 training clips.*set it to 2"):
        batch_size_of(config, 2)


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
