import dataclasses
import re

import pytest
import torch

from waver.benchmarks.suite import BENCHMARKS, UnknownBenchmarkError, choose_benchmarks, run_benchmarks

USUAL = [name for name, benchmark in BENCHMARKS.items() if benchmark.is_usual]


def test_benchmarks_are_chosen_by_name():
    assert choose_benchmarks("", commands=False) == USUAL
    assert choose_benchmarks("", commands=True) == [*USUAL, "commands"]
    assert choose_benchmarks("scaling, match", commands=False) == ["match", "scaling"]
    with pytest.raises(UnknownBenchmarkError, match="matching is none of step, match"):
        choose_benchmarks("matching", commands=False)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the backbones have their full size")
def test_all_benchmarks_measure_all_ways(context, said):
    names = [name for name in BENCHMARKS if name != "commands"]
    rows = [row for measured in run_benchmarks(names, context) for row in measured]
    announced = [message.partition(",")[0] for message in said if re.match(r"\d+ of \d+, ", message)]
    assert announced == [f"{number} of {len(names)}" for number in range(1, len(names) + 1)]
    measured = [row for row in rows if row.values]
    assert all(value > 0 for row in measured for value in row.values)
    # There is no GPU, no Ray was asked for, and not every processor computes bf16.
    assert {row.way for row in rows if not row.values} - {"bf16"} == {"waver", "loaders of Ray Data"}
    assert len([row for row in rows if row.way.startswith("conventional")]) == 5
    notes = " ".join(row.note for row in rows)
    assert "0 of 100 ranks differ" in notes
    assert "0 of 2100 phrase ids differ" in notes
    works = {row.work.partition(",")[0] for row in rows}
    assert {"step with a frozen backbone", "match", "wti 50 x 50 and ranks both ways", "step"} <= works


@pytest.mark.slow
def test_without_baseline_the_rows_say_why(context):
    alone = dataclasses.replace(context, conventional=None, why_not="there is none")
    names = ["step", "match", "input", "rank", "train"]
    rows = [row for measured in run_benchmarks(names, alone) for row in measured]
    missing = [row for row in rows if row.way.startswith("conventional")]
    assert [(row.values, row.note) for row in missing] == [((), "not run: there is none")] * 5
