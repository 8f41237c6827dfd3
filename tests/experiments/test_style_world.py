"""The experiment on unseen writers: its world, its ways, and what its report computes from ranks that are known."""

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from experiments.style_world.dictionaries import random_words, shuffled_words
from experiments.style_world.report import Results, chosen, curves_table, gap_text, table
from experiments.style_world.study import NUM_ROTATIONS, Place, seen_vocabularies
from experiments.style_world.ways import BASELINE, WAYS
from experiments.style_world.world import caption_rows, split_scenes
from experiments.style_world.writers import (
    COLOUR_WORDS,
    COLOURS,
    MOTION_WORDS,
    MOTIONS,
    SHAPE_WORDS,
    SHAPES,
    SIZES,
    VOCABULARIES,
    WRITERS,
    caption,
)

TABLES = {"colour": (COLOURS, COLOUR_WORDS), "shape": (SHAPES, SHAPE_WORDS), "motion": (MOTIONS, MOTION_WORDS)}


@pytest.fixture(scope="module")
def scenes():
    return split_scenes()


def test_no_triple_is_in_two_splits(scenes):
    triples = {split: {(s.colour, s.shape, s.motion) for s in of_split} for split, of_split in scenes.items()}
    assert {split: len(of_split) for split, of_split in scenes.items()} == {
        "test": 1040,
        "validation": 120,
        "train": 1520,
    }
    assert len(set().union(*triples.values())) == sum(map(len, triples.values())) == 960
    for _, count in Counter((s.colour, s.shape, s.motion, s.size) for s in scenes["test"]).items():
        assert count == 1


def test_every_vocabulary_has_words_of_its_own_for_every_value():
    for name, (values, tables) in TABLES.items():
        for vocabulary in VOCABULARIES:
            assert tuple(tables[vocabulary]) == values
            words = [word for of_value in tables[vocabulary].values() for word in of_value]
            assert len(set(words)) == len(words), f"{vocabulary} says {name} in two senses"


def test_some_words_mean_something_else_to_another_writer():
    for _, tables in TABLES.values():
        senses: dict[str, set[str]] = {}
        for vocabulary, value in product(VOCABULARIES, tables["common"]):
            for word in tables[vocabulary][value]:
                senses.setdefault(word, set()).add(value)
        assert sum(len(values) > 1 for values in senses.values()) >= 6


@pytest.mark.parametrize("name", WRITERS)
def test_a_caption_names_colour_shape_and_motion_and_the_first_writer_the_size(scenes, name):
    vocabulary = WRITERS[name].vocabulary
    names_size = name == next(writer for writer in WRITERS if WRITERS[writer].vocabulary == vocabulary)
    for scene, turn in product(scenes["test"][:20], range(3)):
        text = caption(scene, name, turn)
        if WRITERS[name].typos:
            continue
        for attribute, (_, tables) in TABLES.items():
            assert any(word in text for word in tables[vocabulary][getattr(scene, attribute)])
        assert any(f"{size} " in f"{text} ".replace(",", "") for size in SIZES) == names_size


def test_test_clips_have_a_caption_of_each_vocabulary(scenes):
    by_writer = Counter()
    for number, scene in enumerate(scenes["test"]):
        rows = caption_rows(scene, "test", number)
        assert [WRITERS[row["style"]].vocabulary for row in rows] == list(VOCABULARIES)
        by_writer.update(row["style"] for row in rows)
    assert set(by_writer.values()) == {len(scenes["test"]) // 2}
    assert len(caption_rows(scenes["train"][0], "train", 0)) == 2 * len(WRITERS)


def test_every_vocabulary_is_unseen_equally_often():
    unseen = Counter(
        v for rotation in range(NUM_ROTATIONS) for v in set(VOCABULARIES) - set(seen_vocabularies(rotation))
    )
    assert set(unseen.values()) == {3}
    assert set(unseen) == set(VOCABULARIES)


def test_every_trial_of_every_way_is_an_experiment(tmp_path, repository):
    place = Place(tmp_path, repository / "experiments" / "style_world" / "experiment.yaml", {})
    digests = {}
    for name, way in WAYS.items():
        trials = way.trials()
        assert len(trials) == 6, "no way is tuned more than another"
        for number, trial in enumerate(trials):
            config = place.config(way, 1, 0, trial)
            assert config.frozen_towers == ("vision",)
            digests.setdefault(config.digest(), []).append((name, number))
            if way.weight and "." in way.weight:
                assert config.loss.weights[way.weight.removeprefix("loss.")] > 0
    same = [names for names in digests.values() if len(names) > 1]
    assert all(
        {name for name, _ in names} <= {n for n in WAYS if WAYS[n].weight == "decay_to_start" or WAYS[n].settings == {}}
        for names in same
    )


def test_shuffled_and_random_phrases_keep_lengths():
    phrases = ["shows a red star", "draws a zigzag", "rounds the middle"]
    shuffled = shuffled_words(phrases)
    assert Counter(" ".join(shuffled).split()) == Counter(" ".join(phrases).split())
    assert shuffled != phrases
    drawn = random_words(phrases, ["a blue ring rounds the middle"])
    for ours in (shuffled, drawn):
        assert [len(phrase.split()) for phrase in ours] == [4, 3, 3]
    assert set(" ".join(drawn).split()) <= {"a", "blue", "ring", "rounds", "the", "middle"}


def fake_captions(num_clips: int) -> pa.Table:
    writers = [next(w for w in WRITERS if WRITERS[w].vocabulary == vocabulary) for vocabulary in VOCABULARIES]
    rows = [
        {"clip_id": f"c{clip:02d}", "caption_index": index, "split": "test", "style": writer}
        for clip in range(num_clips)
        for index, writer in enumerate(writers)
    ]
    return pa.Table.from_pylist(rows)


def run_of(seen_hits: int, unseen_hits: int, rotation: int, validation: float, num_clips: int = 10) -> dict:
    """Ranks in which the first clips are hits: of captions by seen, and by unseen, writers."""
    seen = [vocabulary in seen_vocabularies(rotation) for vocabulary in VOCABULARIES]
    ranks = [
        1.0 if clip < (seen_hits if of_seen else unseen_hits) else 4.0 for clip in range(num_clips) for of_seen in seen
    ]
    return {
        "validation": validation,
        "ranks": np.array(ranks, np.float32),
        "answers": np.arange(len(ranks)) % num_clips,
        "seconds": 3.0,
    }


@pytest.fixture
def found():
    """The baseline finds 2 of 10 clips at the start, then 6 with seen and 4 with unseen writers; a way finds 4 and 5."""
    runs = {}
    for rotation, seed in product(range(2), range(3)):
        runs[BASELINE, rotation, seed] = {
            "epoch 0": run_of(2, 2, rotation, 10.0),
            "epoch 8": run_of(6, 4, rotation, 50.0),
        }
        runs["fusion", rotation, seed] = {
            "epoch 0": run_of(2, 2, rotation, 10.0),
            "epoch 8": run_of(4, 5, rotation, 40.0),
        }
    return runs


def test_results_of_known_ranks(found):
    results = Results(found, fake_captions(10))
    assert results.over("seen", BASELINE).shape == (2, 3, 5)
    assert results.over("seen", BASELINE).mean() == pytest.approx(0.6)
    assert results.over("unseen", BASELINE).mean() == pytest.approx(0.4)
    assert results.over("unseen", BASELINE, checkpoint="epoch 0").mean() == pytest.approx(0.2)
    assert results.over("unseen", "fusion", lambda ranks: 1 / ranks).mean() == pytest.approx(0.5 + 0.5 / 4)
    assert results.consistency(BASELINE) == pytest.approx(0.4)
    assert results.hubness(BASELINE) == 0
    # At R@1 of 40 % with seen writers the baseline is half way between its checkpoints: at 30 % with unseen ones.
    assert results.at_equal_seen("fusion").mean() == pytest.approx(0.2)
    assert results.at_equal_seen(BASELINE) == pytest.approx(0.0)
    assert results.num_beyond("fusion") == results.num_beyond(BASELINE) == 0


def test_the_table_says_which_runs_are_not_compared_at_equal_recall(found):
    """The baseline never finds 9 of 10 clips with seen writers."""
    found["fusion", 1, 2]["epoch 8"] = run_of(9, 5, 1, 90.0)
    results = Results(found, fake_captions(10))
    assert results.num_beyond("fusion") == 1
    assert results.at_equal_seen("fusion")[1, 2].mean() == pytest.approx(0.5 - 0.4), "the nearest point is the end"
    assert "; 1 of 6 runs beyond the curve" in table(results, WAYS, {way: {} for way in results.ways})


def test_a_shorter_training_is_reported_too(found):
    shorter = {key: {"epoch 0": run["epoch 0"], "epoch 2": run["epoch 8"]} for key, run in found.items()}
    assert gap_text(Results(shorter, fake_captions(10))).startswith(gap_text(Results(found, fake_captions(10)))[:40])
    assert Results(shorter, fake_captions(10)).seconds(BASELINE) == 3.0


def test_the_checkpoint_is_chosen_on_validation():
    result = {"epoch 0": {"validation": 3.0}, "epoch 1": {"validation": 5.0}, "epoch 2": {"validation": 5.0}}
    assert chosen(result) == "epoch 2"
    assert chosen(result | {"average 0.5": {"validation": 6.0}}) == "average 0.5"


def test_the_tables_have_a_row_for_each_way_and_one_for_the_start(found):
    results = Results(found, fake_captions(10))
    text = table(results, WAYS, {way: {"train.lr": 1e-3} for way in results.ways})
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == ["start, no training", BASELINE, "fusion"]
    assert "+20.0" in text
    assert "60.0 / 40.0" in curves_table(results)
    assert "The comparison is informative" in gap_text(results)


def test_the_backbone_of_the_experiment_is_packed(repository: Path):
    assert (repository / "experiments" / "style_world" / "backbone.safetensors").stat().st_size < 2.5e6
