import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from waver.runs.tracking import Tracker, read_metrics, uploader
from waver.tools.object_store import ObjectStoreError, fetch_folder, local_copy, remove


def events(folder: Path, part: str = "") -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(folder / "events" / part))
    accumulator.Reload()
    return {
        tag: [(e.step, round(e.value, 5)) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def age(folder: Path) -> None:
    """Events written in the same second sort by chance; those of a run that was killed are older."""
    for path in (folder / "events").rglob("*tfevents*"):
        path.rename(path.with_name(path.name.replace("tfevents.", "tfevents.0")))


def test_metrics_and_events_agree(tmp_path):
    tracker = Tracker(tmp_path)
    for step in (1, 2, 3):
        tracker.log(step, {"loss/total": step / 4}, epoch=1)
    tracker.log(3, {"t2v/R@1": 12.5}, epoch=1, split="validation")
    tracker.close()
    assert read_metrics(tmp_path)[1] == {"step": 2, "epoch": 1, "loss/total": 0.5}
    assert read_metrics(tmp_path)[3] == {"step": 3, "epoch": 1, "split": "validation", "t2v/R@1": 12.5}
    assert events(tmp_path) == {"3 loss/total": [(1, 0.25), (2, 0.5), (3, 0.75)], "1 retrieval/t2v R@1": [(3, 12.5)]}


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


def test_run_without_checkpoint_starts_over(tmp_path):
    killed = Tracker(tmp_path)
    killed.log(1, {"loss": 1.0})
    killed.flush()
    age(tmp_path)
    anew = Tracker(tmp_path)
    anew.log(1, {"loss": 2.0})
    anew.close()
    assert [row["loss"] for row in read_metrics(tmp_path)] == [2.0]
    assert events(tmp_path)["loss"] == [(1, 2.0)]


def test_series_by_pairs_resumes_at_the_checkpoint(tmp_path):
    """Its steps are pairs, far more than optimizer steps, so purging it must not purge other series."""
    killed = Tracker(tmp_path)
    for step in range(1, 6):
        killed.log(step, {"loss/total": float(step), "grad_norm": 1.0}, pairs=64 * step)
    killed.flush()
    age(tmp_path)
    resumed = Tracker(tmp_path, resume_step=3, resume_pairs=192)
    for step in range(4, 7):
        resumed.log(step, {"loss/total": step + 0.5, "grad_norm": 1.0}, pairs=64 * step)
    resumed.close()
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.5), (5, 5.5), (6, 6.5)]
    assert events(tmp_path)["3 loss/total"] == expected
    assert events(tmp_path, "by_pairs") == {
        "8 by pairs seen/loss total": [(64 * step, loss) for step, loss in expected]
    }


def test_layout_of_charts_grows_with_the_metrics(tmp_path):
    with Tracker(tmp_path) as tracker:
        tracker.log(1, {"loss/total": 1.0})
        tracker.log(1, {"t2v/R@1": 1.0}, split="validation")
    accumulator = EventAccumulator(str(tmp_path / "events"))
    accumulator.Reload()
    (event,) = accumulator.Tensors("custom_scalars__config__")[-1:]
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["retrieval on validation", "learning"]


LIMITED = """
import resource, sys, warnings
from pathlib import Path
from waver.runs.tracking import Tracker

folder = Path(sys.argv[1])
tracker = Tracker(folder)
tracker.log(1, {"loss/total": 1.0})
tracker.flush()
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # no file may grow, as on a full disk
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for step in (2, 3):
        tracker.log(step, {"loss/total": float(step)})
    tracker.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
said = " ".join(str(warning.message) for warning in caught)
assert "metrics.jsonl" in said and "events of" in said and "Training continues" in said, said
tracker.log(4, {"loss/total": 4.0})
tracker.close()
"""


@pytest.mark.slow
def test_full_disk_warns_and_loses_no_row(tmp_path):
    """Runs in a child process, whose file sizes are limited for a while."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=Path(__file__).parents[3]
    )
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4], "rows are written later"
    assert events(tmp_path)["3 loss/total"] == [(1, 1.0)]


def test_unwritable_events_warn_and_metrics_are_written(tmp_path):
    (tmp_path / "events").write_text("a file")
    with pytest.warns(UserWarning, match="events of .* cannot be written"):
        tracker = Tracker(tmp_path)
    tracker.log(1, {"loss/total": 1.0})
    tracker.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]


# ---- runs in an object store


@pytest.fixture
def far(s3, tmp_path):
    """Local copies of one run on three machines."""
    return [local_copy(f"{s3}/run", tmp_path / machine) for machine in ("here", "there", "elsewhere")]


def events_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    fetch_folder(folder)
    return events(folder)


def test_run_resumes_on_another_machine(far):
    here, there, elsewhere = far
    killed = Tracker(here)
    for step in range(1, 5):
        killed.log(step, {"loss": float(step)})
    killed.flush()  # and then its machine was lost, after a checkpoint at step 3
    age(killed.local_folder)
    remove(here / "events")
    killed.flush()
    with Tracker(there, resume_step=3) as resumed:
        resumed.log(4, {"loss": 4.5})
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.5)]
    assert [(row["step"], row["loss"]) for row in read_metrics(elsewhere)] == expected
    assert events_of(elsewhere)["loss"] == expected
    assert not resumed.local_folder.exists()


def test_log_uploads_when_due(far, monkeypatch):
    monkeypatch.setattr(uploader, "INTERVAL_S", 0)
    here, there, _ = far
    with Tracker(here) as tracker:
        for step in (1, 2):
            tracker.log(step, {"loss": 1.0})
            tracker._uploader._upload.result()
        assert len(read_metrics(there)) == 2
        assert events_of(there)["loss"] == [(1, 1.0), (2, 1.0)]


def test_unchanged_files_are_not_uploaded_again(far, monkeypatch):
    tracker = Tracker(far[0])
    tracker.log(1, {"loss": 1.0})
    tracker.flush()
    sent = []
    monkeypatch.setattr(uploader, "upload", lambda path, source: sent.append(path.name))
    tracker.flush()
    assert sent == []
    tracker.log(2, {"loss": 1.0})
    tracker.flush()
    assert len(sent) == 2  # the series by pairs has nothing new
    assert sent[1] == "metrics.jsonl"


@pytest.mark.slow
def test_failed_upload_warns_and_is_repeated(far, monkeypatch, s3_server):
    here, there, _ = far
    with Tracker(here) as tracker:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        tracker.log(1, {"loss": 1.0})
        with pytest.warns(
            UserWarning,
            match=r"metrics and events of s3://waver/.*/run .*the store does not answer.*Training continues",
        ):
            tracker.flush()
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
        tracker.log(2, {"loss": 1.0})
    assert [row["step"] for row in read_metrics(there)] == [1, 2]
    assert events_of(there)["loss"] == [(1, 1.0), (2, 1.0)]


@pytest.mark.slow
def test_files_are_kept_if_the_last_upload_fails(far, monkeypatch):
    tracker = Tracker(far[0])
    tracker.log(1, {"loss": 1.0})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.warns(UserWarning, match=f"The files are kept in {tracker.local_folder}"):
        tracker.close()
    assert len(read_metrics(tracker.local_folder)) == 1


@pytest.mark.slow
def test_resuming_needs_a_store_that_responds(far, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ObjectStoreError, match="the store does not answer"):
        Tracker(far[0], resume_step=3)
