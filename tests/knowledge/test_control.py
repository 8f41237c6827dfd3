import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from waver.knowledge.control import ControlError, build_control
from waver.knowledge.store import Knowledge

CLIPS = {"train": [f"a{i}" for i in range(40)], "validation": ["b0", "b1"], "test": [f"c{i}" for i in range(9)]}


@given(num_clips=st.integers(2, 30), seed=st.integers(0, 2**31))
def test_shuffling_exchanges_the_phrases_of_a_split(num_clips, seed):
    clips = [f"clip {i}" for i in range(num_clips)]
    control = build_control("shuffled", {"train": clips, "test": ["x", "y"]}, seed=seed)
    assert all(clip != other for clip, other in control.phrases_of.items())
    assert sorted(control.phrases_of[clip] for clip in clips) == sorted(clips)
    assert (control.phrases_of["x"], control.phrases_of["y"]) == ("y", "x")


def test_a_shuffle_depends_on_the_seed_and_not_on_the_order_of_the_clips():
    control = build_control("shuffled", CLIPS, seed=1)
    turned = {split: random.Random(0).sample(clips, len(clips)) for split, clips in reversed(CLIPS.items())}
    assert dict(build_control("shuffled", turned, seed=1).phrases_of) == dict(control.phrases_of)
    assert dict(build_control("shuffled", CLIPS, seed=2).phrases_of) != dict(control.phrases_of)
    # Written down: another version or machine must not shuffle the clips of a run in another way.
    assert [control.phrases_of[clip] for clip in ("a0", "a1", "c0")] == ["a7", "a13", "c3"]


def test_a_new_clip_changes_the_phrases_of_one_other_clip():
    before = build_control("shuffled", CLIPS, seed=0).phrases_of
    after = build_control("shuffled", CLIPS | {"train": [*CLIPS["train"], "new"]}, seed=0).phrases_of
    assert sum(before[clip] != after[clip] for clip in before) == 1


def test_constant_gives_all_clips_the_phrases_of_one_training_clip():
    chosen = set()
    for seed in range(8):
        control = build_control("constant", CLIPS, seed=seed)
        assert control.phrases_of.keys() == {clip for clips in CLIPS.values() for clip in clips}
        (clip,) = set(control.phrases_of.values())
        assert clip in CLIPS["train"]
        assert control.summary() == {"control": "constant", "constant_clip": clip}
        chosen.add(clip)
    assert len(chosen) > 3


def test_a_single_clip_cannot_be_shuffled():
    with pytest.raises(ControlError, match=r"the test split has a single clip with phrases \(z\).*constant or none"):
        build_control("shuffled", {"train": ["a", "b"], "test": ["z"]}, seed=0)
    assert build_control("shuffled", {"train": ["a", "b"], "test": []}, seed=0).phrases_of == {"a": "b", "b": "a"}
    assert build_control("none", {"train": ["a"]}, seed=0) is None


def test_clips_under_a_control_have_the_phrases_of_others(knowledge):
    clips = knowledge.matches["clip_id"].to_pylist()
    control = build_control("shuffled", {"train": clips[:14], "test": clips[14:]}, seed=0)
    shuffled = Knowledge(knowledge.path, control)
    others = [control.phrases_of[clip] for clip in clips]
    assert torch.equal(shuffled.phrase_ids(clips, 3), knowledge.phrase_ids(others, 3))
    assert torch.equal(shuffled.phrase_ids(clips[::-1], 3), shuffled.phrase_ids(clips, 3).flip(0))
    assert torch.equal(knowledge.controlled(control).phrase_ids(clips, 3), shuffled.phrase_ids(clips, 3))
    assert (shuffled.control_kind, knowledge.control_kind) == ("shuffled", "none")
    assert shuffled.summary() == knowledge.summary() | {"control": "shuffled"}
    constant = knowledge.controlled(build_control("constant", {"train": clips[:14], "test": clips[14:]}, seed=0))
    assert len(constant.phrase_ids(clips, 3).unique(dim=0)) == 1
