"""Jobs on a real head node that requires a token, submitted as users do it."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Ray reads this while it is imported. This process has no token.
os.environ["RAY_AUTH_MODE"] = "disabled"

import pytest
from rays import family, kill

from waver.config import load_config
from waver.on_ray.jobs import Submission
from waver.on_ray.jobs.client import JobError, send_job

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster"), pytest.mark.timeout(300)]
REPOSITORY = Path(__file__).parents[2]
QUOTED = 'text.prompt=it\'s "a" video of {}'
"""A setting that a shell would split into words."""
FOLLOW = """
import logging, sys
from waver.on_ray.jobs.client import follow_job
logging.basicConfig(level=logging.INFO)
sys.exit(follow_job(*sys.argv[1:], write=print))
"""


@dataclass
class Head:
    """A head node on this machine, which requires a token."""

    address: str
    token: str = field(repr=False)
    environment: dict[str, str] = field(repr=False)
    """The environment of a user with the token."""

    def run(self, *command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
        """Runs `python -m COMMAND`; a variable with an empty value is removed from the environment."""
        variables = {name: value for name, value in {**self.environment, **environment}.items() if value}
        done = subprocess.run(
            [sys.executable, "-m", *map(str, command)],
            cwd=cwd,
            env=variables,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert self.token not in done.stdout + done.stderr
        return done

    def submit(self, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
        """`waver submit` to this head."""
        return self.run("waver", "submit", *arguments, "--address", self.address, cwd=cwd, **environment)

    def jobs(self) -> dict[str, dict]:
        """Returns id -> what the dashboard says about the job, for all jobs."""
        request = urllib.request.Request(f"{self.address}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            text = answer.read().decode()
        assert self.token not in text
        return {job["submission_id"]: job for job in json.loads(text) if job["submission_id"]}

    def wait_for(self, job: str, *statuses: str) -> dict:
        """Waits until a job has one of these statuses; returns what the dashboard says about it."""
        deadline = time.monotonic() + 90
        while (found := self.jobs()[job])["status"] not in statuses:
            assert time.monotonic() < deadline, found
            time.sleep(0.5)
        return found


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    token_file = tmp_path_factory.mktemp("token") / "token"
    token_file.write_text(secrets.token_hex(32))
    ports = _free_ports(4)
    address = f"http://127.0.0.1:{ports[0]}"
    removed = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_JOB_HEADERS")
    environment = {name: value for name, value in os.environ.items() if name not in removed} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",  # other programs on this machine must not end a job
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    # Paths of sockets may have at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="rj", dir="/tmp", ignore_cleanup_errors=True) as folder:
        log = (Path(folder) / "head.log").open("w")
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--temp-dir", folder),
            *("--num-cpus", "4", "--object-store-memory", str(150 * 2**20), "--disable-usage-stats"),
            *("--dashboard-host", "127.0.0.1", "--dashboard-port", ports[0], "--port", ports[1]),
            # Another Ray on the machine may use the default ports, and without these ports no job starts.
            *("--dashboard-agent-listen-port", ports[2], "--ray-client-server-port", ports[3]),
        ]
        process = subprocess.Popen(
            [*map(str, command)], env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True
        )
        try:
            started = Head(address, token_file.read_text(), environment)
            _wait_until_ready(started, process, Path(log.name))
            yield started
        finally:
            kill(family(process.pid))  # faster than `ray stop`, which waits for each process
            process.wait()
            log.close()


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _wait_until_ready(head: Head, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            head.jobs()
            return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)


@pytest.fixture(scope="module")
def project(tmp_path_factory, build_project, captions) -> Path:
    resources = {"workers": 1, "loaders_per_worker": 0}
    folder = build_project(tmp_path_factory.mktemp("project"), captions, train={"epochs": 1}, resources=resources)
    (folder / "experiments").mkdir()
    (folder / "experiment.yaml").rename(folder / "experiments" / "tiny.yaml")
    return folder


def test_plain_ray_job_submit_trains(head, project):
    done = head.run(
        *("ray.scripts.scripts", "job", "submit", "--address", head.address, "--working-dir", ".", "--"),
        *("waver", "train", "experiments/tiny.yaml", "--set", "name=plain"),
        *("--set", f"storage.path={project / 'storage'}"),
        cwd=project,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "storage" / "runs" / "plain" / "result.json").exists()


def test_submit_follows_a_job_to_its_end(head, project):
    done = head.submit("experiments/tiny.yaml", "--set", "name=followed", "--set", QUOTED, cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr

    config = load_config(
        project / "experiments" / "tiny.yaml", {"name": "followed", "text.prompt": QUOTED.partition("=")[2]}
    )
    job_id = re.search(r"job (raysubmit_\w+): python -m waver train experiments/tiny.yaml", done.stderr).group(1)
    for expected in (
        f"{head.address}/#/jobs/{job_id}",
        f"waver board {config.run_folder.parent}",
        f"ray job stop {job_id} --address {head.address}",
        f"job {job_id} succeeded",
    ):
        assert expected in done.stderr
    assert "followed, checkpoint_epoch_0001" in done.stdout  # what the job prints
    job = head.jobs()[job_id]
    assert job["metadata"] == {
        "waver.stage": "train",
        "waver.experiment": "followed",
        "waver.config": config.digest(),
        "waver.folder": str(config.run_folder),
    }
    assert job["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60", "OMP_NUM_THREADS": "1"}
    trained = load_config(config.run_folder / "config.yaml")
    assert trained.digest() == config.digest()
    written = [path.read_bytes() for path in config.run_folder.rglob("*") if path.is_file()]
    assert written
    assert not any(head.token.encode() in content for content in written)


def test_submit_exits_with_the_status_of_a_failed_job(head, project):
    done = head.submit("experiments/tiny.yaml", "ingest", "--set", "data.annotations=/no/captions.jsonl", cwd=project)
    assert done.returncode == 1
    assert "/no/captions.jsonl" in done.stdout
    assert re.search(r"job raysubmit_\w+ failed with exit status 1\n", done.stderr)


def test_a_second_job_of_a_run_is_refused_and_ctrl_c_leaves_the_job_running(head, project):
    # The job waits for capacity that the head never has, and takes no CPU from the other commands.
    settings = ("name=long", "resources.workers=3", "resources.cpus_per_worker=2", "resources.wait_s=600")
    arguments = ("experiments/tiny.yaml", *(part for setting in settings for part in ("--set", setting)))
    command = [sys.executable, "-m", "waver", "submit", *arguments, "--address", head.address]
    client = subprocess.Popen(
        command,
        cwd=project,
        env=head.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stderr = client.stderr.readline()
    assert "job raysubmit" in stderr, stderr + client.stderr.read()
    job_id = re.search(r"job (raysubmit_\w+):", stderr).group(1)
    head.wait_for(job_id, "RUNNING")

    second = head.submit(*arguments, cwd=project)
    assert second.returncode == 1
    assert f"job {job_id} writes {project / 'storage' / 'runs' / 'long'}" in second.stderr

    client.send_signal(signal.SIGINT)  # stops following the job
    _, stderr = client.communicate(timeout=30)
    assert client.returncode == 130
    assert f"job {job_id} goes on" in stderr
    assert head.jobs()[job_id]["status"] == "RUNNING"

    stopped = head.run("ray.scripts.scripts", "job", "stop", job_id, "--address", head.address, cwd=project)
    assert stopped.returncode == 0, stopped.stderr
    head.wait_for(job_id, "STOPPED")
    follow = subprocess.run(
        [sys.executable, "-c", FOLLOW, job_id, head.address], env=head.environment, capture_output=True, text=True
    )
    assert follow.returncode == 143, follow.stderr
    assert f"job {job_id} was stopped" in follow.stderr


def test_clients_without_the_token_are_refused(head, project, monkeypatch):
    before = len(head.jobs())
    done = head.submit("experiments/tiny.yaml", cwd=project, RAY_AUTH_TOKEN="0123456789abcdef" * 4)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "refuses the token" in done.stderr

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    job = Submission("true", project / "experiments", (), (), {}, {}, None)
    with pytest.raises(JobError, match="wants a token and was sent none: set RAY_AUTH_MODE=token") as refused:
        send_job(job, head.address)
    assert head.token not in str(refused.value)
    with pytest.raises(JobError, match="is not the dashboard of a Ray cluster, or it is http://"):
        send_job(job, head.address.replace("http", "https"))
    assert len(head.jobs()) == before
