import os
from pathlib import Path

import pytest

from waver.config import load_config
from waver.data.annotations import DATA_SETS
from waver.data.annotations.msrvtt import MsrvttData
from waver.data.annotations.msvd import load_msvd
from waver.data.annotations.published import PublishedPart, PublishedSplit, split_digest
from waver.evaluation.protocols import OWN, VARIANTS, EvaluatedSplit, Protocol, identify_protocol
from waver.runs.results import evaluated_split

SHARED = Path(os.environ.get("WAVER_SHARED", Path(__file__).parents[2].parent / "shared"))
TRAIN, TEST = [f"train{i}" for i in range(6)], [f"test{i}" for i in range(4)]
HONEST = {
    "data_format": "msrvtt",
    "data_split": "9k",
    "split": "test",
    "clip_ids": {"train": TRAIN[:5], "validation": TRAIN[5:], "test": TEST},
    "captions_per_clip": [1, 1, 1, 1],
    "num_missing_clips": 0,
    "chosen_on": "validation",
    "validation": "held out of train",
    "knowledge_at_inference": True,
    "leaky": False,
}


def identify(**facts) -> Protocol:
    return identify_protocol(EvaluatedSplit(**facts))


@pytest.fixture(autouse=True)
def _published(monkeypatch):
    """A small data set with the name of a large one."""
    parts = {"train": PublishedPart(6, 6, split_digest(TRAIN)), "test": PublishedPart(4, 4, split_digest(TEST))}
    monkeypatch.setitem(MsrvttData.published_splits, "9k", PublishedSplit("MSR-VTT 1k-A, 9k train", parts))


def test_published_protocol_has_a_name_and_no_differences():
    protocol = identify(**HONEST)
    assert (protocol.name, protocol.published, protocol.differences) == ("MSR-VTT 1k-A, 9k train", True, ())
    assert protocol.captions_per_clip == (1, 1, 1)
    assert protocol.lines() == [
        "protocol: MSR-VTT 1k-A, 9k train, test split (exactly as published)",
        "  4 captions against 4 clips, 1 per clip; a tied answer has the average rank of those it is tied with",
        "  model chosen on validation; validation: held out of train; phrases at inference: yes",
    ]


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"clip_ids": HONEST["clip_ids"] | {"test": TEST[:3]}, "captions_per_clip": [1, 1, 2]},
         "another gallery: 3 clips, not the 4 published ones"),
        ({"clip_ids": HONEST["clip_ids"] | {"test": [*TEST[:3], "x"]}},
         "another gallery: 4 clips, not the published ones"),
        ({"captions_per_clip": [1, 1, 1, 20]}, "23 queries, not the 4 published ones"),
        ({"validation": "own"}, "other training videos: 5 clips, not the 6 published ones"),
        ({"num_missing_clips": 2}, "2 clips of the gallery could not be decoded and count as misses"),
        ({"leaky": True}, "captions of validation or test went into the dictionary (leaky)"),
        ({"split": "validation", "captions_per_clip": [1]},
         "no validation split is published; this one was held out of train"),
    ],
)  # fmt: skip
def test_differences_are_listed(changes, difference):
    protocol = identify(**HONEST | changes)
    assert (protocol.published, protocol.differences) == (False, (difference,))
    assert f"  differs: {difference}" in protocol.lines()
    assert "not as published" in protocol.lines()[0]


def test_own_data_has_no_protocol():
    protocol = identify(**HONEST | {"data_format": "table", "data_split": None, "captions_per_clip": [1, 2, 4, 9]})
    assert (protocol.name, protocol.published, protocol.differences) == (OWN, False, ())
    assert protocol.captions_per_clip == (1, 4, 9)
    assert "16 captions against 4 clips, 1 to 9 (mean 4.0) per clip" in protocol.lines()[1]


def test_variants_are_explained():
    lines = identify(**HONEST, variants=["dsl", "qb_norm"]).lines()
    assert lines[-2:] == [f"  {VARIANTS['dsl']}", f"  {VARIANTS['qb_norm']}"]
    assert "depends on all queries of the split" in lines[-2]


def test_every_protocol_is_described_in_protocols_md(repository):
    described = (repository / "experiments/PROTOCOLS.md").read_text()
    for data_set in DATA_SETS.values():
        assert all(split.protocol in described for split in data_set.published_splits.values())


@pytest.mark.slow
def test_msvd_annotations_follow_the_published_protocol(tmp_path):
    annotations = SHARED / "data/annotations/msvd"
    if not annotations.is_dir():
        pytest.skip(f"{annotations} is not there: set WAVER_SHARED")
    (tmp_path / "msvd.yaml").write_text(
        f"name: x\ndata: {{format: msvd, annotations: {annotations}, videos: {tmp_path}, allow_missing_videos: true}}"
    )
    (tmp_path / "other.avi").touch()
    captions = load_msvd(annotations, tmp_path, allow_missing_videos=True)
    test = captions.filter([split == "test" for split in captions["split"].to_pylist()])
    counts = [row["counts"] for row in test["clip_id"].value_counts().to_pylist()]
    evaluated = evaluated_split(
        load_config(tmp_path / "msvd.yaml"),
        captions,
        "test",
        captions_per_clip=counts,
        num_missing_clips=0,
        chosen_on="validation",
        leaky=False,
    )
    protocol = identify_protocol(evaluated)
    assert (protocol.name, protocol.published) == ("MSVD official, all captions", True)
    assert (protocol.num_queries, protocol.gallery_size, protocol.captions_per_clip[::2]) == (27_763, 670, (21, 81))


def test_a_backbone_as_it_is_needs_no_training_videos_to_be_as_published():
    facts = HONEST | {"chosen_on": None, "origin": "zero-shot: ViT-B-32", "validation": "own"}
    protocol = identify(**facts)
    assert (protocol.published, protocol.differences) == (True, ())
    assert "  model zero-shot: ViT-B-32; validation: own; phrases at inference: yes" in protocol.lines()
    assert Protocol(**protocol.as_json()).lines() == protocol.lines()


def test_an_imported_model_is_not_as_published_because_its_training_is_unknown():
    protocol = identify(**HONEST | {"origin": "imported: DRL, from pytorch_model.bin.4"})
    assert not protocol.published
    assert protocol.differences == ("the model was trained elsewhere, and its file does not tell on which videos",)
