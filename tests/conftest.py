"""How tests run: their processes, their order, and which of them need Ray. The fixtures are in shared_fixtures.py."""

import os
import signal

import pytest

# Set before anything imports torch or Ray: one thread for each process, so that several processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell that starts pytest in the background lets it and its children ignore Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Loads the fixtures, except in the process that only hands out tests: they import torch, which takes seconds."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", 0):
        config.pluginmanager.import_plugin("shared_fixtures")


WITHOUT_RAY = (
    "jobs",
    "test_robustness.py",
    "test_storage.py",
    "test_loopback.py",
    "test_reachability.py",
    "test_start.py",
    "test_export.py",
    "test_frozen.py",
    "test_zero_shot.py",
)
"""Parts of tests/on_ray that do not use the shared Ray; each has a fixture `ray_session` that starts no Ray."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the tests on Ray, puts those that share a Ray into one process, and sorts the tests.

    Two Rays that start in the same second disturb each other. So tests that start their own Ray run first in the process
    with the shared Ray, and last in the other process, minutes later. If all tests share one process (`-n 0`), those of
    tests/on_ray that use no Ray come first: a process that is connected to a Ray does not check whether it could start one.
    """
    alone = not hasattr(config, "workerinput") and not config.getoption("numprocesses", 0)
    order = {}
    for item in items:
        own, distributed = item.get_closest_marker("own_ray") is not None, "distributed" in item.path.parts
        order[item] = 2 if own else 1 if distributed else 0
        if distributed:
            item.add_marker(pytest.mark.xdist_group("distributed"))
        elif "on_ray" in item.path.parts:
            shares = not set(WITHOUT_RAY) & set(item.path.parts)
            if shares or own:
                item.add_marker(pytest.mark.ray)
            if shares:
                item.add_marker(pytest.mark.xdist_group("ray"))
                order[item] = -1 if own else 0
            elif alone and not own:
                order[item] = -2
    items.sort(key=order.__getitem__)
