import json
import time

import pytest

from waver.tools.files import write_text
from waver.tools.progress import follow_run, track_progress


def test_results_pass_through_and_items_are_counted(capfd):
    results = track_progress(
        [[1, 2], [3]], doing="reading", unit="clips", total=3, size=len, note=lambda result: ", ok"
    )
    assert list(results) == [[1, 2], [3]]
    assert "reading: 3/3 clips" in capfd.readouterr().err


def step(number: int, padding: str = "") -> dict:
    return {"step": number, "epoch": 1, "loss/total": 0.5, "clips_per_s": 8.0, "padding": padding}


def validation(epoch: int) -> dict:
    sizes = {} if epoch == 2 else {"gallery_size": 23}  # rows of an earlier version have none
    return {"step": 4, "epoch": epoch, "split": "validation", "t2v/R@1": 40.0, "v2t/R@1": 50.0} | sizes


def write(path, *rows: dict) -> None:
    """At once, as a run that resumes shortens the file."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("padding", ["", "longer", "long" * 100], ids=["same", "longer", "much longer"])
def test_metrics_of_each_epoch_are_logged_although_a_resumed_run_rewrites_the_file(tmp_path, said, padding):
    path = tmp_path / "metrics.jsonl"
    write(path, validation(1))  # from before: not logged
    with follow_run(tmp_path, num_steps=8):
        write(path, validation(1), *map(step, range(1, 4)), validation(2))
        wait_until(lambda: any("epoch 2" in line for line in said))
        # Between two looks the run goes back to its checkpoint, and on: the former end may lie within a row.
        write(path, validation(1), *(step(number, padding) for number in range(1, 5)), validation(2), validation(3))
    assert not any("epoch 1:" in line for line in said)
    assert [line for line in said if "epoch 3" in line] == [
        "epoch 3: loss 0.500, validation R@1 40.0 text to video, 50.0 video to text (chance 4.3, 23 clips)"
    ]
    assert any(line.endswith("50.0 video to text") for line in said if "epoch 2" in line)


def test_epoch_0_is_told_as_zero_shot(tmp_path, said):
    with follow_run(tmp_path, num_steps=8):
        write(tmp_path / "metrics.jsonl", validation(0) | {"step": 0, "split": "validation, zero-shot"}, step(1))
        wait_until(lambda: said)
    assert said == [
        "epoch 0 (zero-shot, before training): validation R@1 40.0 text to video, 50.0 video to text (chance 4.3, 23 clips)"
    ]


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
