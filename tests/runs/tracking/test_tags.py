from waver.runs.tracking.tags import PAIRS_SEEN, layout, pairs_tag_of, tag_of

NAMES = [
    *(f"{direction}/{name}" for direction in ("t2v", "v2t") for name in ("R@1", "R@5", "R@10", "MdR", "MnR")),
    "styles/a style/of two",
    "loss/total",
    "loss/distill",
    "lr/new",
    "lr/backbone",
    "grad_norm",
    "logit_scale",
    "entropy/text_weights",
    "agreement/first_answer",
    "accuracy/plain",
    "accuracy/informed",
    "distill/candidates",
    "distill/weight",
    "batch/shared_captions",
    "clips_per_s",
    "clips_per_s_per_worker",
    "data_wait_share",
    "gpu_memory_gib",
    "gpu_utilisation",
    "memory_of_worker_gib",
    "clips/failed",
]


def test_every_scalar_has_a_group_and_its_own_tag():
    tags = [tag_of(name) for name in NAMES]
    assert len(set(tags)) == len(NAMES)
    assert all(tag[0].isdigit() and tag.count("/") == 1 for tag in tags), (
        "TensorBoard groups by what is before the slash"
    )


def test_groups_are_numbered_in_display_order():
    groups = list(dict.fromkeys(sorted(tag_of(name).partition("/")[0] for name in NAMES)))
    assert [group[2:] for group in groups] == ["retrieval", "styles", "loss", "model", "optimizer", "speed", "data"]
    assert tag_of("t2v/R@1") == "1 retrieval/t2v R@1"
    assert tag_of("loss/total") == "3 loss/total"
    assert tag_of("something/else") == "something/else"


def test_scalars_with_a_series_by_pairs():
    assert [name for name in NAMES if pairs_tag_of(name)] == ["t2v/R@1", "v2t/R@1", "loss/total"]
    assert pairs_tag_of("loss/total") == f"{PAIRS_SEEN}/loss total"


def test_charts_have_exactly_the_given_scalars():
    charts = layout(NAMES)
    curves = [tag for group in charts.values() for _, tags in group.values() for tag in tags]
    assert sorted(curves) == sorted(tag_of(name) for name in NAMES if name != "clips/failed")
    assert layout(["loss/total"]) == {"learning": {"loss and its terms": ["Multiline", ["3 loss/total"]]}}
    assert layout([]) == {}
