import numpy as np
import pytest
import torch

from waver.search import SearchError
from waver.search.calibration import (
    MIN_QUERIES,
    Calibration,
    Uncalibrated,
    calibrate,
    read_calibration,
    write_calibration,
)


def test_at_most_the_stated_share_of_new_queries_is_told_wrongly():
    generator = torch.Generator().manual_seed(0)
    own, others = torch.randn(400, generator=generator) + 2, torch.randn(400, generator=generator)
    calibration = calibrate(own, others, num_clips=50)
    assert isinstance(calibration, Calibration)
    assert (own < calibration.threshold).double().mean() <= calibration.error_rate
    assert calibration.detection_rate == pytest.approx((others < calibration.threshold).double().mean().item())
    wrong = []
    for _ in range(300):  # over many validation splits, since the rate of one of them varies
        sample = calibrate(torch.randn(400, generator=generator) + 2, others, num_clips=50)
        wrong.append((torch.randn(200, generator=generator) + 2 < sample.threshold).double().mean().item())
    assert 0.03 < np.mean(wrong) <= calibration.error_rate + 0.005
    assert calibration.nothing_fits(calibration.threshold - 0.01)
    assert not calibration.nothing_fits(calibration.threshold)


def test_a_caption_whose_own_score_is_unknown_counts_as_low():
    own = torch.linspace(0.5, 0.9, 200)
    known = calibrate(own, torch.zeros(200), num_clips=9)
    some_unknown = calibrate(torch.where(torch.arange(200) < 3, -torch.inf, own), torch.zeros(200), num_clips=9)
    assert some_unknown == known, "the lowest ones are below the threshold in any case"
    most_unknown = calibrate(torch.where(torch.arange(200) < 30, -torch.inf, own), torch.zeros(200), num_clips=9)
    assert not most_unknown.nothing_fits(-1.0), "then nothing can be told"


def test_too_few_captions_give_no_threshold():
    found = calibrate(torch.ones(MIN_QUERIES - 1), torch.zeros(MIN_QUERIES - 1), num_clips=9)
    assert found == Uncalibrated("the validation split has 99 captions, and an error rate of 5% needs 100")
    assert str(found).startswith("whether anything fits a query is unknown: the validation split has 99 captions")


def test_a_calibration_is_stored_with_the_index(tmp_path):
    assert "run `waver index` again" in str(read_calibration(tmp_path))
    for calibration in (Calibration(0.5, 0.05, 0.3, 240, 60), Uncalibrated("its videos are gone")):
        write_calibration(tmp_path, calibration)
        assert read_calibration(tmp_path) == calibration
    (tmp_path / "calibration.json").write_text("{")
    with pytest.raises(SearchError, match=r"calibration.json is damaged .*: delete it, and run `waver index` again"):
        read_calibration(tmp_path)
