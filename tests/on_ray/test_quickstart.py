"""The last step of the quickstart on a small world: its test videos are indexed and searched."""

import pytest
import torch
from rich.console import Console

from waver.quickstart.experiment import quickstart_config
from waver.quickstart.searching import (
    WRITERS,
    describe_videos,
    found_table,
    index_folder,
    search_test_videos,
)
from waver.quickstart.weights import write_backbone
from waver.quickstart.world import render_world
from waver.runs.checkpoint import save_checkpoint
from waver.runs.inputs import load_captions
from waver.search import open_index
from waver.search.windows import Windows
from waver.training.build import build_training


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A world with five test videos, one of which is broken, and the run of its backbone, untrained."""
    output = tmp_path_factory.mktemp("quickstart")
    render_world(output / "world", num_train=3, num_validation=1, num_test=5, num_broken=1, seed=7)
    write_backbone(output / "backbone.safetensors")
    config = quickstart_config(output, 1, {"knowledge.top_k": 0})
    torch.manual_seed(0)
    training = build_training(config, num_steps=1, device=torch.device("cpu"))
    save_checkpoint(config.run_folder / "checkpoint_epoch_0001", training, config)
    config.run_folder.joinpath("metrics.jsonl").write_text(
        '{"step": 1, "epoch": 1, "split": "validation", "t2v/R@1": 1.0}\n'
    )
    return config


@pytest.fixture(scope="module")
def found(config):
    return search_test_videos(config)


def test_three_writers_find_videos_that_were_never_trained_on(config, found):
    rows = load_captions(config).to_pylist()
    test = {row["path"] for row in rows if row["split"] == "test"}
    assert [query.writer for query in found] == list(WRITERS)
    assert len({query.path for query in found}) == 3
    written = {(row["path"], row["style"]): row["caption"] for row in rows}
    for query in found:
        assert query.query == written[str(query.path), query.writer]
        assert [answer.rank for answer in query.answers] == [1, 2, 3]
        assert {str(answer.path) for answer in query.answers} <= test


def test_the_index_is_the_one_that_waver_index_would_add_to(config, found):
    index = open_index(index_folder(config))
    assert index_folder(config) == config.storage.folder / "indexes" / "quickstart"
    assert index.settings.windows == Windows(10.0, 5.0)
    assert len(index) == 4, "one of five test videos is broken"
    answers = index.search(found[0].query, 3)
    assert [answer.window_id for answer in answers] == [answer.window_id for answer in found[0].answers]


def test_the_table_says_what_is_in_the_videos(config, found, monkeypatch):
    monkeypatch.chdir(config.storage.folder)
    descriptions = describe_videos(config)
    console = Console(width=200, record=True, markup=False)  # as `waver.cli.options.stdout`
    console.print(found_table(found[0], descriptions))
    text = console.export_text()
    assert text.startswith(f"[plain] {found[0].query}")
    for answer in found[0].answers:
        assert descriptions[answer.path] in text
        assert f"{answer.score:.3f}" in text
        assert f" world/videos/{answer.path.name}" in text
    assert text.count("(written for this video)") == sum(answer.path == found[0].path for answer in found[0].answers)
