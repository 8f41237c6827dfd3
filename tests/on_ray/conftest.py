"""One small Ray for all tests of this folder: 4 s to start, so it is started once."""

import contextlib
import os
import tempfile
import time
from pathlib import Path

from rays import SETTINGS

os.environ.update(SETTINGS)
os.environ.pop("RAY_ADDRESS", None)  # never a cluster that somebody uses
os.environ.pop("RAY_AUTH_MODE", None)
# Workers import the modules of the tests, which import the helpers beside tests/conftest.py.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])

import numpy as np
import pytest
from PIL import Image

import waver.on_ray  # noqa: F401  its environment, before Ray
from waver.on_ray.cluster.loopback import loopback_only


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


@pytest.fixture
def holding():
    """Takes so many CPUs while the body runs, or until what it yields is called."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    @contextlib.contextmanager
    def hold(cpus: int):
        group = placement_group([{"CPU": cpus}])
        ray.get(group.ready())
        while ray.available_resources().get("CPU", 0) > 6 - cpus:  # what is told of it comes a little later
            time.sleep(0.1)
        try:
            yield lambda: remove_placement_group(group)
        finally:
            remove_placement_group(group)

    return hold
