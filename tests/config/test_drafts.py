"""Configurations with mistakes, read as far as possible."""

import pytest

from waver.config.drafts import draft_experiment

GOOD = {"name": "x", "data": {"format": "table", "annotations": "/a.jsonl", "videos": "/v"}}


def draft(**settings):
    return draft_experiment(GOOD | settings)


def test_a_draft_without_mistakes_is_the_experiment():
    good = draft(train={"lr": 1})
    assert (good.mistakes, good.config.train.lr, good.is_certain("data", "train.lr")) == ([], 1, True)


@pytest.mark.parametrize(
    ("settings", "uncertain", "certain"),
    [
        ({"train": {"epoch": 3}}, ["train.epochs", "train"], ["train.lr", "data", "model"]),
        ({"train": {"colour": 3}}, [], ["train", "data"]),
        ({"train": 3}, ["train", "train.lr"], ["data"]),
        ({"video": {"size": "big"}}, ["video.size", "video"], ["video.max_frames"]),
        ({"data": {"format": "tables"}}, ["data", "data.videos"], ["model"]),
        ({"data": {"format": "table", "videos": "/w"}}, ["data", "data.annotations"], ["data.videos"]),
        ({"knowledge": {"released": ["/a", 3]}}, ["knowledge.released"], ["knowledge.top_k"]),
        ({"resources": {"workers": "two"}}, ["resources.workers"], ["resources.wait_s"]),
        ({"model": {"backbone": 3, 4: 5}}, ["model.backbone"], ["model.weights"]),
        ({"trian": {}, 7: 8}, ["train"], ["model"]),
        ({"name": "a/b"}, ["name"], ["data"]),
    ],
)
def test_a_mistake_makes_only_its_own_settings_uncertain(settings, uncertain, certain):
    found = draft(**settings) if "data" in settings or "name" in settings else draft_experiment(GOOD | settings)
    assert found.mistakes
    assert [key for key in uncertain if found.is_certain(key)] == []
    assert found.is_certain(*certain)
    if "name" not in settings:
        assert found.config.name == "x"


def test_all_contradictions_are_told_with_the_mistakes():
    loss = {"loss": {"distill": 1, "knowledge": 2}, "train": {"global_batch_size": 4}, "resources": {"workers": 3}}
    expected = [
        "loss.knowledge = 2 needs phrases",
        "loss.distill = 1 needs phrases",
        "resources.workers = 3 is more than",
    ]
    for settings in (loss, loss | {"video": {"size": 0}}):
        mistakes = draft(**settings).mistakes
        assert [part for part in expected if not any(line.startswith(part) for line in mistakes)] == []
        assert len(mistakes) == len(expected) + ("video" in settings)


def test_a_contradiction_with_a_mistaken_setting_is_not_told():
    mistakes = draft(loss={"distill": 1}, knowledge={"top_kk": 3}).mistakes
    assert mistakes == ["knowledge.top_kk: unknown key; did you mean top_k?"]
