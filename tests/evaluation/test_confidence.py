import numpy as np
import pytest

from waver.evaluation.confidence import beside, describe_errors, describe_rivals, find_small_validation, standard_error


def test_chance_and_gallery_stand_beside_a_metric():
    assert beside(23) == "chance 4.3, 23 clips"
    assert beside(1) == "chance 100.0, 1 clip"
    assert beside(23, "t2v/R@10") == "chance 43.5, 23 clips"
    assert beside(23, "v2t/MdR") == "chance 12.0, 23 clips"


@pytest.mark.parametrize(("percent", "num_queries"), [(40.0, 1000), (70.0, 240), (50.0, 57)])
def test_standard_error_is_the_spread_of_random_recalls(percent, num_queries):
    recalls = 100 * np.random.default_rng(0).binomial(num_queries, percent / 100, 20000) / num_queries
    assert standard_error(percent, num_queries) == pytest.approx(recalls.std(), rel=0.03)


def test_few_queries_have_an_error_even_if_all_hit():
    assert standard_error(100.0, 1) > standard_error(100.0, 10) > standard_error(100.0, 1000) > 0
    assert standard_error(100.0, 5) == standard_error(0.0, 5)


def test_ties_and_small_differences_are_said():
    def rivals(values: dict[int, float], **gallery) -> list[str]:
        return describe_rivals(values, max(values, key=lambda n: values[n]), "t2v/R@1", what="trial", **gallery)

    known = {"num_clips": 23, "num_captions": 57}
    assert rivals({0: 50.0}, **known) == []
    assert rivals({0: 50.0, 1: 20.0}, **known) == []
    assert rivals({0: 100.0, 1: 100.0, 2: 100.0, 3: 100.0}, **known) == [
        "trials 1, 2 and 3 tie with trial 0 at t2v/R@1 100.00"
    ]
    assert rivals({3: 10.0, 4: 50.0, 5: 45.0, 7: 50.0 - 1e-12}, **known) == [
        "trial 7 ties with trial 4 at t2v/R@1 50.00",
        "trial 5 differs from trial 4 by less than the standard error of t2v/R@1 (6.5 points for 57 queries)",
    ]
    assert rivals(dict.fromkeys(range(9), 50.0)) == ["trials 1, 2, 3, 4 and 4 more tie with trial 0 at t2v/R@1 50.00"]
    assert rivals({0: 50.0, 1: 49.0}) == [], "of unknown queries no error is known"
    ranks = describe_rivals({0: 3.0, 1: 3.1}, 0, "t2v/MnR", what="epoch", **known)
    assert ranks == [], "only recalls have a binomial error"
    clips = describe_rivals({0: 50.0, 1: 41.0}, 0, "v2t/R@1", what="epoch", **known)
    assert clips == [
        "epoch 1 differs from epoch 0 by less than the standard error of v2t/R@1 (10.0 points for 23 queries)"
    ]


def test_errors_of_the_directions_that_are_there():
    assert describe_errors({"t2v/R@1": 50.0, "v2t/R@1": 50.0}, 23, 57) == (
        "R@1: chance 4.3, 23 clips; the standard error is 6.5 points of t2v/R@1 (57 captions) and 10.0 points of v2t/R@1 "
        "(23 clips)"
    )
    assert describe_errors({"t2v/R@1": 50.0}, 23, 57).endswith("6.5 points of t2v/R@1 (57 captions)")


def test_a_small_validation_split_is_found(captions):
    found, remedy = find_small_validation(captions)
    assert found.startswith(
        "validation has 5 clips and 10 captions: R@1 is 20.0 by chance, and its standard error is up to 14"
    )
    assert remedy == "give more clips the split validation, best 50"
    held_out = captions.replace_schema_metadata({"validation": "held out of train"})
    assert "--set data.validation_fraction=0.4" in find_small_validation(held_out)[1]
    assert find_small_validation(captions.filter([split == "train" for split in captions["split"].to_pylist()])) is None
    clips = captions.set_column(1, "clip_id", [[f"c{n}" for n in range(len(captions))]])
    all_validation = clips.set_column(clips.schema.get_field_index("split"), "split", [["validation"] * len(clips)])
    assert len(all_validation) >= 50
    assert find_small_validation(all_validation) is None
