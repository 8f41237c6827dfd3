"""A run whose storage is an object store (a real S3 server on loopback), continued on other machines.

Each command runs in its own process with an empty cache, as on a machine that has only the URL.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rays import family, kill

from waver.runs.folder import best_checkpoint, checkpoints, read_result
from waver.runs.tracking import read_metrics
from waver.tools.object_store import fetch_folder, list_names, local_copy

EPOCHS = 3


@pytest.fixture(scope="session", autouse=True)
def ray_session():
    """Starts no Ray in this process."""


@pytest.fixture
def experiment(s3, tmp_path, captions, build_project) -> Path:
    """An experiment whose clip store is complete."""
    resources = {"workers": 1, "loaders_per_worker": 1}
    build_project(tmp_path, captions, storage={"path": s3}, train={"epochs": EPOCHS}, resources=resources)
    return tmp_path / "experiment.yaml"


def machine(tmp_path: Path, name: str) -> dict[str, str]:
    """Returns the environment of a machine, which has a cache of its own."""
    return {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {
        "XDG_CACHE_HOME": str(tmp_path / name)
    }


def waver(environment: dict[str, str], *arguments: str) -> str:
    """Runs a command; returns its output."""
    done = subprocess.run(
        [sys.executable, "-m", "waver", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.own_ray
@pytest.mark.timeout(600)
def test_a_run_that_loses_its_machine_continues_on_another(s3, experiment, tmp_path):
    run = local_copy(f"{s3}/runs/tiny", tmp_path / "observer")
    job = subprocess.Popen(
        [sys.executable, "-m", "waver", "train", str(experiment)],
        env=machine(tmp_path, "first"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 200
        while not checkpoints(run):
            assert job.poll() is None, job.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        kill(family(job.pid))
        said = job.communicate()[0]
    assert read_result(run) is None, "the run finished before it was killed"
    shutil.rmtree(tmp_path / "first")

    said += waver(machine(tmp_path, "second"), "train", str(experiment), "--set", "resources.loaders_per_worker=0")
    assert "continuing tiny after epoch" in said
    assert f"next: waver evaluate {s3}/runs/tiny\n" in said
    steps = [row["step"] for row in read_metrics(run) if "split" not in row]
    assert steps == list(range(1, read_result(run)["steps"] + 1))
    assert {"config.yaml", "data.json", "environment.json", "metrics.jsonl", "result.json"} <= set(list_names(run))
    assert max(checkpoints(run)) == EPOCHS
    assert len(checkpoints(run)) <= 3

    said += waver(machine(tmp_path, "third"), "evaluate", f"{s3}/runs/tiny")
    result = json.loads(fetch_folder(run, "evaluation_test.json")[0].read_text())
    assert result["checkpoint"] == f"{s3}/runs/tiny/{best_checkpoint(run)[0].name}"
    assert (result["num_queries"], result["gallery_size"], result["missing_clips"]) == (24, 9, ["v20"])

    assert_hidden(os.environ["AWS_SECRET_ACCESS_KEY"], said, fetch_folder(local_copy(s3, tmp_path / "everything")))


def assert_hidden(secret: str, said: str, files: list[Path]) -> None:
    assert len(files) > 20
    assert secret not in said
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
