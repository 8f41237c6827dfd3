"""The command `waver bench`; what it measures is tested in tests/benchmarks."""

import json

import pytest
import torch
from typer.testing import CliRunner

from waver.benchmarks.suite import BENCHMARKS, UnknownBenchmarkError
from waver.cli import app
from waver.cli.benchmarks import NAMES


def run(*arguments: str):
    return CliRunner().invoke(app, ["bench", *arguments])


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run for minutes")
def test_the_table_goes_to_standard_output_and_the_turns_to_a_file(tmp_path, repository, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("--only", "gpu", "--output", "out.json", "--repeats", "3", "--folder", str(tmp_path))
    assert done.exit_code == 0, done.output
    machine, _, head, _, *rows = done.stdout.splitlines()
    assert "Medians of 3 turns" in machine
    assert head.startswith("| work | way | median (range) |")
    assert [row.endswith("| not run: no GPU |") for row in rows] == [True, True]
    stored = json.loads((tmp_path / "out.json").read_text())
    assert stored["machine"]["torch"] == torch.__version__
    assert [row["note"] for row in stored["rows"]] == ["not run: no GPU"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_an_unknown_benchmark_is_named():
    assert isinstance(run("--only", "steps").exception, UnknownBenchmarkError)


def test_the_help_names_all_benchmarks():
    usual = [name for name, benchmark in BENCHMARKS.items() if benchmark.is_usual]
    assert NAMES.startswith(f"{', '.join(usual)};")
    assert all(name in NAMES for name in BENCHMARKS)
    assert "--against" in run("--help").stdout
