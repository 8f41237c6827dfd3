"""The benchmarks in experiments/ are not run by the tests; they must at least fit to the code that they measure."""

import runpy
from pathlib import Path

import pytest

BENCHMARKS = sorted((Path(__file__).parents[1] / "experiments" / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_imports_only_what_exists(path):
    found = runpy.run_path(str(path), run_name="benchmark")
    assert found["__doc__"]
