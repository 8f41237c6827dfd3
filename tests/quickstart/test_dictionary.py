"""The packaged dictionary is the one that spaCy extracts from the quickstart's training captions."""

import pytest

from waver.config import ExperimentConfig
from waver.config.model import VocabularyConfig
from waver.knowledge.phrases import count_phrases, load_parser, merge_counts
from waver.knowledge.store import read_dictionary
from waver.quickstart import dictionary
from waver.quickstart.dictionary import extract_or_copy_dictionary, packaged_dictionary
from waver.quickstart.experiment import quickstart_config
from waver.quickstart.scenes import split_scenes
from waver.quickstart.world import WORLD, caption_rows


@pytest.fixture
def config(tmp_path) -> ExperimentConfig:
    return quickstart_config(tmp_path, 1, {})


def training_captions() -> list[str]:
    """Training captions in the order of the caption table."""
    scenes = split_scenes(**{name: WORLD[name] for name in ("num_train", "num_validation", "num_test", "seed")})
    return [row["caption"] for scene in scenes["train"] for row in caption_rows(scene, "train", WORLD["seed"])]


@pytest.mark.slow
def test_the_packaged_dictionary_is_that_of_the_training_captions():
    captions, packaged = training_captions(), packaged_dictionary()
    expected = merge_counts([count_phrases(captions, range(len(captions)), load_parser(VocabularyConfig().parser))])
    assert packaged.phrases.equals(expected)
    assert (packaged.leaky, packaged.manifest["splits"]) == (False, ["train"])
    assert packaged.manifest["num_captions"] == len(captions)


def test_without_a_parser_the_packaged_dictionary_is_copied_and_the_log_says_so(config, monkeypatch, said):
    monkeypatch.setattr(dictionary, "installed_parser", lambda name: None)
    copied = extract_or_copy_dictionary(config)
    assert ["no spaCy model" in text for text in said] == [True]
    stored = read_dictionary(config.dictionary)
    assert stored.phrases.equals(copied.phrases)
    assert stored.manifest == packaged_dictionary().manifest
