import pytest

from waver.training.plan import BatchSizeError, batch_size_of, describe_lowered_batch


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
