import dataclasses
import itertools

import pytest

from waver.quickstart.scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, Scene, split_scenes

WORLD = {"num_train": 600, "num_validation": 60, "num_test": 120}


def triple(scene: Scene) -> tuple[str, str, str]:
    return scene.colour, scene.shape, scene.motion


@pytest.fixture(scope="module", params=[0, 1, 2])
def splits(request: pytest.FixtureRequest) -> dict[str, list[Scene]]:
    return split_scenes(**WORLD, seed=request.param)


def test_each_split_has_the_requested_number_of_scenes(splits):
    assert {f"num_{name}": len(scenes) for name, scenes in splits.items()} == WORLD


def test_no_two_scenes_have_equal_attributes(splits):
    described = [dataclasses.astuple(scene)[:-1] for scenes in splits.values() for scene in scenes]
    assert len(set(described)) == len(described)


def test_validation_and_test_have_no_triple_twice(splits):
    for name in ("validation", "test"):
        assert len(set(map(triple, splits[name]))) == len(splits[name])


def test_no_triple_is_in_two_splits(splits):
    for one, other in itertools.combinations(splits.values(), 2):
        assert not set(map(triple, one)) & set(map(triple, other))


def test_train_has_every_value_of_every_attribute(splits):
    for name, values in zip(
        ("colour", "shape", "motion", "background", "size"), (COLOURS, SHAPES, MOTIONS, BACKGROUNDS, SIZES), strict=True
    ):
        assert {getattr(scene, name) for scene in splits["train"]} == set(values)


@pytest.mark.parametrize("seed", range(20))
def test_22_training_scenes_have_every_colour_shape_and_motion(seed):
    train = split_scenes(num_train=22, num_validation=60, num_test=120, seed=seed)["train"]
    assert {value for scene in train for value in triple(scene)} == {*COLOURS, *SHAPES, *MOTIONS}


def test_the_split_depends_on_the_seed_alone():
    assert split_scenes(**WORLD, seed=3) == split_scenes(**WORLD, seed=3) != split_scenes(**WORLD, seed=4)


def test_scenes_are_the_same_on_every_machine():
    """And in every version: otherwise metrics of the world could not be compared."""
    (scene,) = split_scenes(num_train=1, num_validation=0, num_test=0, seed=0)["train"]
    assert scene == Scene("pink", "star", "round", "white", "small", seed=3369600403)


@pytest.mark.parametrize("sizes", [(10, 100, 100), (2000, 60, 120)])
def test_more_scenes_than_combinations_raise_value_error(sizes):
    num_train, num_validation, num_test = sizes
    with pytest.raises(ValueError, match="too many"):
        split_scenes(num_train=num_train, num_validation=num_validation, num_test=num_test, seed=0)
