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
    """Starts none in this process."""


@pytest.mark.own_ray
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="Linux tells who listens")
def test_a_ray_of_this_machine_listens_to_nobody_else_and_serves_nobody_without_its_token():
    ours = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_API_SERVER_ADDRESS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)

    whole = " ".join(seen["found"].values())
    assert all(process in whole for process in ("raylet", "gcs_server", "RayTrainWorker", "python", "DashboardAgent"))
    assert {at: who for at, who in seen["found"].items() if not at.startswith(LOOPBACK)} == {}
    assert seen["answers"] == ["True", "AuthenticationError"]
    assert seen["told"] == []
    # All three are set by Ray itself.
    assert set(seen["changed"]) <= {"RAY_BACKEND_LOG_LEVEL", "OMP_NUM_THREADS", "PYTHONBREAKPOINT"}
