import hashlib

import torch

from waver.runs.inspection.subset import choose_subset, worst_queries

CLIPS = [f"clip{number:02}" for number in range(20)]
CLIP_OF_TEXT = torch.arange(20).repeat_interleave(3)
TEXTS = [f"{CLIPS[clip]}#{index % 3}" for index, clip in enumerate(CLIP_OF_TEXT.tolist())]


def test_choice_is_by_the_hash_of_ids():
    subset = choose_subset(CLIPS, TEXTS, CLIP_OF_TEXT, num_clips=4, captions_per_clip=2)
    by_hash = sorted(CLIPS, key=lambda name: hashlib.sha256(f"0 {name}".encode()).digest())
    assert [CLIPS[clip] for clip in subset.clips] == by_hash[:4]
    for clip, texts in zip(subset.clips, subset.texts, strict=True):
        own = [f"{CLIPS[clip]}#{index}" for index in range(3)]
        assert [TEXTS[text] for text in texts] == sorted(
            own, key=lambda name: hashlib.sha256(f"0 {name}".encode()).digest()
        )[:2]


def test_choice_depends_neither_on_order_nor_on_size():
    subset = choose_subset(CLIPS, TEXTS, CLIP_OF_TEXT, num_clips=6, captions_per_clip=1)
    names = [(CLIPS[clip], [TEXTS[text] for text in texts]) for clip, texts in zip(*vars(subset).values(), strict=True)]
    # The same clips, numbered backwards.
    turned = choose_subset(CLIPS[::-1], TEXTS[::-1], CLIP_OF_TEXT, num_clips=3, captions_per_clip=1)
    clips, texts = CLIPS[::-1], TEXTS[::-1]
    assert [(clips[c], [texts[t] for t in own]) for c, own in zip(*vars(turned).values(), strict=True)] == names[:3]
    assert subset[:3].clips == subset.clips[:3]
    assert subset[:3].texts == subset.texts[:3]


def test_new_clip_displaces_at_most_one():
    before = choose_subset(CLIPS[:19], TEXTS[:57], CLIP_OF_TEXT[:57], num_clips=5)
    after = choose_subset(CLIPS, TEXTS, CLIP_OF_TEXT, num_clips=5)
    assert len(set(before.clips) - set(after.clips)) <= 1


def test_seed_changes_the_choice():
    chosen = {choose_subset(CLIPS, TEXTS, CLIP_OF_TEXT, num_clips=5, seed=seed).clips for seed in range(3)}
    assert len(chosen) == 3


def test_small_gallery_is_chosen_completely_with_any_ids():
    subset = choose_subset(["猫", "\ud800"], ["猫#0", "\ud800#0"], torch.tensor([0, 1]), num_clips=64)
    assert sorted(subset.clips) == [0, 1]


def test_worst_queries_have_the_highest_finite_ranks():
    ranks = torch.tensor([1.0, 7.0, torch.inf, 2.5, 7.0, 1.0, 30.0])
    assert worst_queries(ranks, 3) == [6, 1, 4]
    # Neither what is right nor what could not be decoded.
    assert worst_queries(ranks, 10) == [6, 1, 4, 3]
    assert worst_queries(torch.ones(3), 2) == []
