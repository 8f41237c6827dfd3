"""The R@1 of a README, with ties and captions whose clip is missing, beside that of an evaluation."""

import numpy as np
import pytest
import torch

from waver.evaluation.metrics import retrieval_metrics
from waver.evaluation.ranking import rank_similarity
from waver.model.interaction import INTERACTIONS
from waver.search.export.readme import XTI, load_code, recall_code, score_code


def test_ties_and_missing_clips_count_as_in_an_evaluation(capsys):
    rng = np.random.default_rng(0)
    clip_of_text = np.repeat(np.arange(12), 5)
    similarity = rng.integers(0, 4, (60, 12)) / 8.0
    similarity[np.arange(60), clip_of_text] += rng.integers(0, 3, 60) / 8.0
    available = torch.arange(12) != 7
    ranks = rank_similarity(torch.from_numpy(similarity), torch.from_numpy(clip_of_text), available)
    expected = retrieval_metrics(ranks)["t2v/R@1"]
    assert (ranks.t2v_ties > 0).any()
    row = np.where(available, available.cumsum(0) - 1, -1)
    names = {"np": np, "scores": similarity[:, available.numpy()], "texts": {"clip": row[clip_of_text]}}
    exec(recall_code(), names)
    assert float(capsys.readouterr().out) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", INTERACTIONS)
def test_every_interaction_has_its_python_or_a_reason(kind):
    code = score_code(kind, "videos", 0.01)
    compile(code, kind, "exec")
    assert bool(code) == (kind != "xti")
    assert "xti" in XTI


@pytest.mark.parametrize("format", ["npz", "parquet", "safetensors"])
@pytest.mark.parametrize("files", [["windows"], ["texts", "videos"]])
def test_the_code_that_loads_is_python(format, files):
    compile(load_code(format, files), format, "exec")
