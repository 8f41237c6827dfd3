from pathlib import Path

from waver.sweeps.folder import begin_trial, drop_checkpoints, objective_history, read_trials


def test_trials_are_read_from_their_files(tmp_path, written):
    states = read_trials(tmp_path)
    assert [state.number for state in states] == [0, 1, 2, 3, 4]
    assert [state.status for state in states] == ["finished", "finished", "stopped", "failed", "running"]
    assert [state.epochs for state in states] == [4, 4, 1, 0, 3]
    assert states[0].values("t2v/R@1") == [20.0, 30.0], "of the best epoch of each seed"
    assert states[0].values("v2t/R@1") == [20.05, 30.05], "of the same epoch"
    assert [run.finished for run in states[4].runs] == [True, False]
    assert (states[3].values("t2v/R@1"), states[3].error) == ([], "loss = nan <at> step 3")
    assert (states[2].seconds, states[2].gpu_seconds) == (12.0, 5.0)


def test_drop_checkpoints_keeps_metrics(tmp_path, written):
    before = read_trials(tmp_path)
    drop_checkpoints(before[0].folder)
    assert list(before[0].folder.rglob("checkpoint_*")) == []
    assert list(before[1].folder.rglob("checkpoint_*"))
    assert read_trials(tmp_path) == before


def test_another_point_of_the_same_number_replaces_the_trial(tmp_path: Path):
    trial = begin_trial(tmp_path, 3, {"a": 1})
    (trial / "seed_0").mkdir()
    assert begin_trial(tmp_path, 3, {"a": 1}) == trial
    assert (trial / "seed_0").exists()
    begin_trial(tmp_path, 3, {"a": 2})
    assert not (trial / "seed_0").exists()
    assert read_trials(tmp_path)[0].point == {"a": 2}


def test_history_of_a_trial_is_what_it_reported_after_each_epoch(tmp_path, written):
    """Epochs summed over seeds; the mean of the seeds so far, each by its best epoch."""
    first = read_trials(tmp_path)[0]
    assert objective_history(first, "t2v/R@1") == [(1, 1.0), (2, 20.0), (3, 25.0), (4, 25.0)]
    assert objective_history(read_trials(tmp_path)[3], "t2v/R@1") == []
