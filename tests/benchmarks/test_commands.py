import json

import pytest

from waver.benchmarks.commands import CommandError, run_command, seconds_of_steps


def test_the_steps_of_a_run_are_summed(tmp_path, load_tiny):
    config = load_tiny(**{"train.captions_per_clip": 2})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    (tmp_path / "result.json").write_text(
        json.dumps({"epochs": 3, "data": {"num_train_clips": 10, "num_train_captions": 30}})
    )
    # Ten steps for 60 pairs: six pairs a step, at 3 or 6 pairs a second.
    rows = [{"step": 0, "split": "validation"}, *({"clips_per_s": 3.0 if step % 2 else 6.0} for step in range(10))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert seconds_of_steps(tmp_path) == pytest.approx(5 * 2 + 5 * 1)


@pytest.mark.slow
def test_a_command_is_timed_and_its_failure_is_told(tmp_path):
    assert run_command(["--help"], tmp_path) > 0.1
    with pytest.raises(CommandError, match=r"(?s)`waver train nowhere.yaml` has failed with exit code 2.*no such file"):
        run_command(["train", "nowhere.yaml"], tmp_path)
