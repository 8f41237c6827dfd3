"""The trace is read back as a viewer would read it."""

import gzip
import json
import re
from collections import Counter

import pytest
import torch
from torch.profiler import record_function

from waver.training.profiling import BACKWARD, DATA_WAIT, FORWARD, LOSS, OPTIMIZER, ProfileError, Profiler


def loop(folder, steps, num_steps=6, first=1):
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Profiler(folder, steps) as profiler:
        for number in range(first, num_steps + 1):
            profiler.step(number)
            with record_function(DATA_WAIT):
                batch = torch.randn(3, 4)
            with record_function(FORWARD):
                output = model(batch)
            with record_function(LOSS):
                loss = output.square().mean()
            with record_function(BACKWARD):
                loss.backward()
            with record_function(OPTIMIZER):
                optimizer.step()
                optimizer.zero_grad()


def read(folder):
    (path,) = folder.iterdir()
    with gzip.open(path, "rt") as file:
        return path.name, json.load(file)


def blocks(trace):
    return [event for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]


def test_the_steps_asked_for_and_no_others_are_in_the_trace(tmp_path):
    loop(tmp_path / "profile", (2, 4))
    name, trace = read(tmp_path / "profile")
    assert name == "steps_2_to_4.pt.trace.json.gz"
    counts = Counter(event["name"] for event in blocks(trace))
    parts = dict.fromkeys((DATA_WAIT, FORWARD, LOSS, BACKWARD, OPTIMIZER), 3)
    assert {name: counts[name] for name in parts} == parts
    assert sorted(name for name in counts if re.fullmatch(r"step \d+", name)) == ["step 2", "step 3", "step 4"]
    # An operator lies in the time of the part that called it, and a part in that of its step.
    operators = [event for event in trace["traceEvents"] if event.get("name") == "aten::linear"]
    assert len(operators) == 3
    forward = [event for event in blocks(trace) if event["name"] == FORWARD]
    assert all(any(inside(event, part) for part in forward) for event in operators)
    steps = [event for event in blocks(trace) if event["name"].startswith("step ")]
    assert all(any(inside(part, step) for step in steps) for part in forward)


def inside(event, other):
    return other["ts"] <= event["ts"] and event["ts"] + event["dur"] <= other["ts"] + other["dur"]


def test_a_run_that_ends_in_between_has_its_trace(tmp_path):
    loop(tmp_path / "profile", (5, 9))
    name, trace = read(tmp_path / "profile")
    assert name == "steps_5_to_6.pt.trace.json.gz"
    assert sum(event["name"] == FORWARD for event in blocks(trace)) == 2


def test_a_run_that_goes_on_in_the_middle_records_the_rest(tmp_path):
    loop(tmp_path / "profile", (2, 4), first=4)
    assert read(tmp_path / "profile")[0] == "steps_4_to_4.pt.trace.json.gz"


@pytest.mark.parametrize("first", [1, 5])
def test_steps_that_do_not_come_leave_nothing_behind(tmp_path, first):
    loop(tmp_path / "profile", (8, 9) if first == 1 else (2, 3), first=first)
    assert not (tmp_path / "profile").exists()


def test_each_process_has_a_file_of_its_own(tmp_path):
    with Profiler(tmp_path, (1, 1), rank=3) as profiler:
        profiler.step(1)
    assert [path.name for path in tmp_path.iterdir()] == ["steps_1_to_1_rank_3.pt.trace.json.gz"]


@pytest.mark.parametrize(
    ("steps", "message"), [((0, 3), "cannot be profiled"), ((5, 4), "cannot"), ((1, 51), "more than 50")]
)
def test_steps_that_cannot_be_recorded(tmp_path, steps, message):
    with pytest.raises(ProfileError, match=message):
        Profiler(tmp_path, steps)
