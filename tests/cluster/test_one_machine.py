"""cluster/one-machine.sh starts a real head, accepts jobs with its token, and ends only its own processes."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess]


def processes_of(folder: Path) -> list[str]:
    """Returns the command lines of processes that name a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{folder}/" in line:
            found.append(line)
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    # Paths of sockets may have at most 107 characters.
    path = Path(tempfile.mkdtemp(prefix="head", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def run(folder: Path, repository: Path) -> Iterator[Run]:
    """Runs a command as a user of this head does, without the settings of Ray that other tests have made."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
        "PYTHONPATH": str(repository),
        "WAVER_HEAD": str(folder),
        "WAVER_DASHBOARD_PORT": str(port),
    }

    def call(command: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", "-c", command],
            cwd=repository,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    yield call
    call("cluster/one-machine.sh stop")


def test_a_job_runs_and_stop_leaves_no_process_and_no_token(run, folder):
    started = run("cluster/one-machine.sh start")
    assert started.returncode == 0, started.stderr
    token = (folder / "token").read_text()
    assert (folder / "token").stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0
    assert token not in started.stdout + started.stderr
    again = run("cluster/one-machine.sh start")
    assert again.returncode == 0
    assert "runs already" in again.stderr

    job = "ray job submit -- python -c 'import waver; print(\"waver\", waver.__version__)'"
    done = run(f'eval "$(cluster/one-machine.sh env)" && {job}')
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nwaver 0." in done.stdout
    assert token not in done.stdout + done.stderr
    refused = run(f'eval "$(cluster/one-machine.sh env)" && RAY_AUTH_TOKEN=wrong {job}')
    assert refused.returncode != 0
    assert "authentication token is invalid" in refused.stdout + refused.stderr

    assert processes_of(folder)
    stopped = run("cluster/one-machine.sh stop")
    assert stopped.returncode == 0, stopped.stderr
    assert processes_of(folder) == []
    assert not (folder / "token").exists()
    assert run("cluster/one-machine.sh env").returncode != 0


def test_a_taken_port_is_an_error_and_nothing_starts(run, folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        started = run(f"WAVER_DASHBOARD_PORT={port} cluster/one-machine.sh start")
    assert started.returncode == 1
    assert f"port {port} is taken" in started.stderr
    assert processes_of(folder) == []


def test_stop_spares_another_process_with_the_recorded_id(run, folder):
    """After a reboot the recorded id may belong to another process, which has another start time."""
    with subprocess.Popen(["sleep", "60"]) as other:
        (folder / "head.pid").write_text(f"{other.pid} 1\n")
        stopped = run("cluster/one-machine.sh stop")
        assert "no head" in stopped.stderr
        assert other.poll() is None
        other.kill()


def test_an_unknown_command_prints_the_known_ones(run):
    assert "start|env|stop" in run("cluster/one-machine.sh begin").stderr
