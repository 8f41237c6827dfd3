import pytest
import torch

from waver.benchmarks.gpu import measure_gpu, measure_on_device, peak_speed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_run(context):
    assert [(row.values, row.note) for row in measure_gpu(context)] == [((), "not run: no GPU")] * 2


@pytest.mark.slow
def test_the_peak_of_an_unknown_device_is_measured():
    speed, source = peak_speed("cpu")
    assert speed > 1e8
    assert "measured with a matrix product of 256 cubed" in source


@pytest.mark.slow
def test_eager_and_compiled_steps_are_measured_on_any_device(context):
    rows = measure_on_device(context, "step", "cpu", compiler="eager")
    assert [row.way for row in rows] == ["eager", "compiled"]
    assert all(len(row.values) == context.repeats and "MFU" in row.note for row in rows)
