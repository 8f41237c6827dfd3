import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("alone.py")
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


@pytest.fixture(scope="session", autouse=True)
def ray_session():
    """Starts no Ray in this process: the script starts its own."""


@pytest.mark.own_ray
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="only Linux lists sockets in /proc")
def test_a_local_ray_listens_on_loopback_only_and_requires_its_token():
    overridden = (
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_API_SERVER_ADDRESS",
        "GLOO_SOCKET_IFNAME",
        "NCCL_SOCKET_IFNAME",
    )
    environment = {name: value for name, value in os.environ.items() if name not in overridden}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)

    listeners = " ".join(report["listeners"].values())
    assert all(
        process in listeners for process in ("raylet", "gcs_server", "RayTrainWorker", "python", "DashboardAgent")
    )
    assert {at: process for at, process in report["listeners"].items() if not at.startswith(LOOPBACK)} == {}
    assert report["answers"] == ["True", "AuthenticationError"]
    assert report["files_with_token"] == []
    # Ray itself sets these three.
    assert set(report["changed"]) <= {"RAY_BACKEND_LOG_LEVEL", "OMP_NUM_THREADS", "PYTHONBREAKPOINT"}
