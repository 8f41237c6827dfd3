from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from waver.tracking import Tracker, read_metrics


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(folder / "events"))
    accumulator.Reload()
    return {
        tag: [(e.step, round(e.value, 5)) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def age(folder: Path) -> None:
    """Events written in the same second sort by chance; those of a run that was killed are older."""
    for path in (folder / "events").iterdir():
        path.rename(path.with_name(path.name.replace("tfevents.", "tfevents.0")))


def test_both_files_say_the_same(tmp_path):
    tracker = Tracker(tmp_path)
    for step in (1, 2, 3):
        tracker.log(step, {"loss/total": step / 4}, epoch=1)
    tracker.log(3, {"t2v/R@1": 12.5}, epoch=1, split="validation")
    tracker.close()
    assert read_metrics(tmp_path)[1] == {"step": 2, "epoch": 1, "loss/total": 0.5}
    assert read_metrics(tmp_path)[3] == {"step": 3, "epoch": 1, "split": "validation", "t2v/R@1": 12.5}
    assert events(tmp_path) == {"loss/total": [(1, 0.25), (2, 0.5), (3, 0.75)], "t2v/R@1": [(3, 12.5)]}


def test_a_resumed_run_has_each_step_once(tmp_path):
    killed = Tracker(tmp_path)
    for step in range(1, 8):
        killed.log(step, {"loss": float(step)}, epoch=1)
    killed.flush()  # and then it was killed, after a checkpoint at step 4
    age(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')

    resumed = Tracker(tmp_path, resume_step=4)
    for step in range(5, 9):
        resumed.log(step, {"loss": step + 0.5}, epoch=2)
    resumed.close()
    expected = [(step, float(step)) for step in range(1, 5)] + [(step, step + 0.5) for step in range(5, 9)]
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == expected
    assert events(tmp_path)["loss"] == expected


def test_a_run_that_starts_anew_forgets_what_was_before_its_first_checkpoint(tmp_path):
    killed = Tracker(tmp_path)
    killed.log(1, {"loss": 1.0})
    killed.flush()
    age(tmp_path)
    anew = Tracker(tmp_path)
    anew.log(1, {"loss": 2.0})
    anew.close()
    assert [row["loss"] for row in read_metrics(tmp_path)] == [2.0]
    assert events(tmp_path)["loss"] == [(1, 2.0)]
