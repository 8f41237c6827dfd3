"""The dictionary that travels with the package is the one that a parser makes of the quickstart's training captions."""

import pytest

from waver.config import ExperimentConfig
from waver.knowledge.phrases import count_phrases, load_parser, merge_counts
from waver.knowledge.store import read_dictionary
from waver.quickstart import dictionary
from waver.quickstart.dictionary import installed_parser, make_dictionary, shipped_dictionary
from waver.quickstart.experiment import quickstart_config
from waver.quickstart.scenes import split_scenes
from waver.quickstart.world import WORLD, describe


@pytest.fixture
def config(tmp_path) -> ExperimentConfig:
    return quickstart_config(tmp_path, 1, {})


def training_captions() -> list[str]:
    """In the order of the world's table."""
    scenes = split_scenes(**{name: WORLD[name] for name in ("num_train", "num_validation", "num_test", "seed")})
    return [row["caption"] for scene in scenes["train"] for row in describe(scene, "train", WORLD["seed"])]


def test_the_shipped_dictionary_is_that_of_the_training_captions():
    captions, shipped = training_captions(), shipped_dictionary()
    expected = merge_counts([count_phrases(captions, range(len(captions)), load_parser(installed_parser()))])
    assert shipped.phrases.equals(expected)
    assert (shipped.leaky, shipped.manifest["splits"]) == (False, ["train"])
    assert shipped.manifest["num_captions"] == len(captions)


def test_without_a_parser_the_shipped_one_is_taken_and_said_so(config, monkeypatch, said):
    monkeypatch.setattr(dictionary, "installed_parser", lambda: None)
    taken = make_dictionary(config)
    assert ["no spaCy model" in text for text in said] == [True]
    there = read_dictionary(config.dictionary)
    assert there.phrases.equals(taken.phrases)
    assert there.manifest == shipped_dictionary().manifest


def test_a_parser_that_is_not_installed_is_not_found(monkeypatch):
    assert installed_parser() in dictionary.PARSERS
    monkeypatch.setattr(dictionary, "PARSERS", ("no_such_model",))
    assert installed_parser() is None
