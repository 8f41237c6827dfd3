"""What a result says of the model that was evaluated."""

import pyarrow as pa
import pytest
import torch

from waver.evaluation.evaluate import evaluate
from waver.runs.checkpoint import checkpoint_config, save_checkpoint
from waver.runs.results import result_of
from waver.training.build import build_training


@pytest.fixture
def train_styles_of(tmp_path, captions, store, load_tiny):
    """Returns what the result of a model that was trained on some styles says of them, evaluated with overrides."""
    styles = pa.array(["plain", "terse"] * (len(captions) // 2) + ["plain"] * (len(captions) % 2))
    styled = captions.set_column(captions.schema.get_field_index("style"), "style", styles)

    def result(trained: dict, overrides: dict) -> list[str] | None:
        config = load_tiny(**trained)
        training = build_training(config, num_steps=1, device=torch.device("cpu"))
        save_checkpoint(tmp_path / "checkpoint", training, config, None)
        evaluated = checkpoint_config(tmp_path / "checkpoint", overrides)
        evaluation = evaluate(training.student, styled, store, evaluated, split="test")
        return result_of(evaluation, tmp_path / "checkpoint", evaluated, None, styled, chosen_on=None)["train_styles"]

    return result


def test_seen_styles_are_those_of_the_run_whatever_an_evaluation_reads(train_styles_of):
    some = {"data.train_styles": ["plain"]}
    assert train_styles_of(some, {}) == ["plain"]
    assert train_styles_of(some, {"data.train_styles": None}) == ["plain"], "validation is evaluated in all styles"
    assert train_styles_of({}, {}) == ["plain", "terse"]
    assert train_styles_of({}, {"data.annotations": "/elsewhere/captions.jsonl"}) == ["plain", "terse"]


def test_seen_styles_are_unknown_for_a_run_on_other_captions(train_styles_of):
    assert train_styles_of({}, {"data.annotations": "others.jsonl"}) is None
    assert train_styles_of({}, {"data.train_styles": ["terse"]}) is None
