"""One small Ray for all tests of this folder: 4 s to start, so it is started once."""

import contextlib
import os
import signal
import tempfile
from pathlib import Path

# Ray reads these while it is imported; what waver.on_ray would choose for users is overruled here.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_DEDUP_LOGS="0",
    RAY_DATA_USE_DATASOURCE_V2="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0",
    RAY_TRAIN_METRICS_ENABLED="0",
    OMP_NUM_THREADS="1",
)
os.environ.pop("RAY_ADDRESS", None)  # never a cluster that somebody uses
os.environ.pop("RAY_AUTH_MODE", None)

import numpy as np
import pytest
from PIL import Image

import waver.on_ray  # noqa: F401  its environment, before Ray
from waver.on_ray.loopback import loopback_only


@pytest.fixture(scope="session", autouse=True)
def ray_session():
    import ray

    # As a user's: early stopping asks the dashboard. Paths of sockets may have 107 characters.
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder,
        loopback_only(dashboard=True) as port,
    ):
        ray.init(
            address="local",
            num_cpus=6,
            include_dashboard=True,
            dashboard_port=port,
            object_store_memory=200 * 2**20,
            log_to_driver=False,
            _temp_dir=folder,
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def render_video():
    """Renders `num_frames` frames of 10 a second to a file; frame i is a grey of `grey` + i."""

    def render(path: Path, num_frames: int = 30, grey: int = 0) -> Path:
        frames = [Image.fromarray(np.full((24, 32, 3), grey + i, np.uint8)) for i in range(num_frames)]
        frames[0].save(path, "GIF", save_all=True, append_images=frames[1:], duration=100)
        return path

    return render


@pytest.fixture(scope="session")
def family():
    """A process and its descendants, the oldest last, so that nobody is adopted before it is found."""

    def find(pid: int) -> list[int]:
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
        found = [pid]
        for process in found:
            found += [child for child, parent in parents.items() if parent == process]
        return found[::-1]

    return find


@pytest.fixture(scope="session")
def kill():
    """Ends processes at once; those that have ended already are no error."""

    def end(processes: list[int]) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    return end
