from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from waver.data.epochs import epoch_batches, even_batches, num_batches

settings.register_profile("quick", max_examples=50, deadline=None)
settings.load_profile("quick")


def clips(sizes: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)


@given(
    sizes=st.lists(st.integers(1, 5), min_size=4, max_size=40),
    batch=st.integers(2, 4),
    passes=st.integers(1, 4),
    epoch=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)
def test_an_epoch_visits_each_clip_captions_per_clip_times(sizes, batch, passes, epoch, seed):
    clip = clips(sizes)
    batches = epoch_batches(clip, epoch=epoch, seed=seed, global_batch_size=batch, captions_per_clip=passes)
    rows = np.concatenate(batches)
    assert Counter(clip[rows].tolist()) == dict.fromkeys(range(len(sizes)), passes)
    for one in batches:
        assert len(set(clip[one].tolist())) == len(one) <= batch, "two captions of a clip in a batch"
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    # Another caption at each visit, until all have come up.
    for number, size in enumerate(sizes):
        taken = rows[clip[rows] == number]
        assert len(set(taken.tolist())) == min(size, passes)


@given(size=st.integers(1, 7), seed=st.integers(0, 1000))
def test_all_captions_are_used_before_any_is_repeated(size, seed):
    clip = clips([size, 2])
    taken = []
    for epoch in range(2 * size):
        rows = np.concatenate(epoch_batches(clip, epoch=epoch, seed=seed, global_batch_size=2, captions_per_clip=1))
        taken += rows[clip[rows] == 0].tolist()
    assert sorted(taken[:size]) == sorted(taken[size:]) == list(range(size))


def test_order_differs_by_epoch_and_seed_and_is_repeatable():
    def plan(**changes):
        return np.concatenate(
            epoch_batches(
                clips([2] * 50), **{"epoch": 1, "seed": 2, "global_batch_size": 10, "captions_per_clip": 1, **changes}
            )
        )

    assert np.array_equal(plan(), plan())
    assert not np.array_equal(plan(), plan(epoch=2))
    assert not np.array_equal(plan(), plan(seed=3))


def test_a_batch_larger_than_the_split_has_each_clip_once_per_pass():
    batches = epoch_batches(clips([1, 2, 3]), epoch=0, seed=0, global_batch_size=4, captions_per_clip=2)
    assert [sorted(clips([1, 2, 3])[batch]) for batch in batches] == [[0, 1, 2], [0, 1, 2]]


def test_even_batches_cover_all_rows_with_one_size():
    assert even_batches(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert even_batches(130, 64) == [slice(0, 44), slice(44, 88), slice(88, 130)]
    assert even_batches(3, 64) == [slice(0, 3)]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=4, max_size=40),
    batch=st.integers(2, 12),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 2**31),
)
def test_an_epoch_of_all_captions_visits_each_once(sizes, batch, epoch, seed):
    clip = clips(sizes)
    found = epoch_batches(clip, epoch=epoch, seed=seed, global_batch_size=batch, captions_per_clip=None)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(clip)))
    for one in found:
        assert len(set(clip[one].tolist())) == len(one) <= batch, "two captions of a clip in a batch"
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert len(found) == max(max(sizes), -(-len(clip) // batch)) == num_batches(np.array(sizes), batch)
    again = epoch_batches(clip, epoch=epoch, seed=seed, global_batch_size=batch, captions_per_clip=None)
    assert all(np.array_equal(one, other) for one, other in zip(found, again, strict=True))


def test_clips_of_an_epoch_of_all_captions_meet_by_chance():
    """Dealing must not keep clips together: how often two clips share a batch is as in independent draws."""
    clip, met = clips([6] * 30), np.zeros((30, 30))
    for epoch in range(200):
        for one in epoch_batches(clip, epoch=epoch, seed=0, global_batch_size=10, captions_per_clip=None):
            met[np.ix_(clip[one], clip[one])] += 1
    others = met[~np.eye(30, dtype=bool)]
    assert np.all(np.diag(met) == 200 * 6)
    # 18 batches of 10 pairs: two clips with six captions each meet in 6 * 9 / 29 batches of an epoch.
    assert others.mean() == np.float64(200 * 6 * 9 / 29)
    assert others.std() < 1.5 * np.sqrt(others.mean())
    assert others.max() < 1.5 * others.mean()


def test_epochs_of_all_captions_differ_by_epoch_and_seed():
    def plan(**changes):
        settings = {"epoch": 1, "seed": 2, "global_batch_size": 10, "captions_per_clip": None, **changes}
        return np.concatenate(epoch_batches(clips([3, 2] * 25), **settings))

    assert np.array_equal(plan(), plan())
    assert not np.array_equal(plan(), plan(epoch=2))
    assert not np.array_equal(plan(), plan(seed=3))
