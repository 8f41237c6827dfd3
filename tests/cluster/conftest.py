"""Starts real Ray clusters of several nodes on this machine, for tests of faults.

The commands under test run as a user runs them, in processes of their own that find the cluster by RAY_ADDRESS. So they do
not use the Ray of tests/on_ray, and the tests survive the loss of a cluster.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rays import SETTINGS, family, kill

os.environ.update(
    SETTINGS,
    RAY_AUTH_MODE="disabled",
    # Ray takes a silent node for dead after 5 s; its default is 15 s.
    RAY_health_check_period_ms="1000",
    RAY_raylet_start_wait_time_s="120",  # other tests may use the CPUs
)
os.environ.pop("RAY_ADDRESS", None)  # never a cluster of the user

import pytest

import waver.on_ray  # noqa: F401  its environment, before Ray

REPOSITORY = Path(__file__).parents[2]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests of this folder `cluster` and `ray`, and puts them into one process.

    Two clusters at a time would starve each other. `ray` keeps the tests out of the fast lane, whose `-m` replaces the
    `-m 'not cluster'` of pyproject.toml.
    """
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.xdist_group("cluster"))


class RayCluster:
    """A head without CPUs, and nodes that are added and lost. Every node is a raylet on this machine."""

    def __init__(self, folder: Path, **head: object):
        from ray.cluster_utils import Cluster

        self.folder = folder
        """Ray's temporary folder, with its logs."""
        self._started: list[subprocess.Popen] = []
        # By default the head has no dashboard, and so no job agent.
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 150 * 2**20, **head}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)

    @property
    def address(self) -> str:
        """The value for RAY_ADDRESS."""
        return self._cluster.address

    @property
    def head(self):
        """The head node, to which Ray assigns drivers on this machine."""
        return self._cluster.head_node

    @property
    def nodes(self) -> list:
        """All nodes but the head."""
        return list(self._cluster.worker_nodes)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process that uses this cluster and this clone of waver."""
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        return {**os.environ, "RAY_ADDRESS": self.address, "PYTHONPATH": path}

    def add_node(self, cpus: int = 2, labels: Mapping[str, str] | None = None, **arguments: object):
        """Starts a node and waits until the cluster knows it. Call it only from the main thread.

        Args:
            cpus: number of CPUs that the node declares.
            labels: of the node, such as {"waver.role": "train"}.
            arguments: of `ray.cluster_utils.Cluster.add_node`.
        """
        return self._cluster.add_node(num_cpus=cpus, labels=dict(labels or {}), **arguments)

    def start_node(self, cpus: int = 2, *, wrapper: Sequence[str] = (), python_path: Sequence[Path] = ()) -> None:
        """Starts a node by `ray start`, in an environment of its own.

        Args:
            cpus: number of CPUs that the node declares.
            wrapper: command that runs the command given as its last arguments.
            python_path: folders that this node searches for packages first.
        """
        environment = self.environment
        environment["PYTHONPATH"] = os.pathsep.join([*map(str, python_path), environment["PYTHONPATH"]])
        command = [
            *wrapper,
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--block",
            f"--address={self.address}",
        ]
        nodes = self.alive()
        self._started.append(
            subprocess.Popen(
                [*command, f"--num-cpus={cpus}"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        )
        while self.alive() == nodes:
            assert self._started[-1].poll() is None, "ray start ended"
            time.sleep(0.1)

    def processes(self, node) -> list[int]:
        """Returns the processes of a node: raylet, agents, workers and their descendants; children before their parents."""
        raylets = [entry.process.pid for entry in node.all_processes["raylet"]]
        return [process for raylet in raylets for process in family(raylet)]

    def kill_node(self, node) -> None:
        """Kills raylet and workers of a node at once, as a power failure does."""
        kill(self.processes(node))
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_raylet(self, node) -> None:
        """Kills the raylet of a node; the workers of the node notice and end themselves."""
        kill([entry.process.pid for entry in node.all_processes["raylet"]])

    def drain_node(self, node, *, deadline_s: float) -> None:
        """Announces to the cluster that a node will be preempted within `deadline_s`."""
        drain = ["drain-node", f"--address={self.address}", f"--node-id={node.node_id}"]
        reason = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test"]
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            *drain,
            *reason,
            f"--deadline-remaining-seconds={deadline_s}",
        ]
        subprocess.run(command, env=self.environment, check=True, capture_output=True)

    def alive(self) -> int:
        """Returns the number of nodes that the cluster takes for alive, its head included."""
        return len(self._cluster.global_state._live_node_ids())

    def start(self, *arguments: object, **options: object) -> subprocess.Popen:
        """Starts `python *arguments` on this cluster, for example `-m waver train ...`.

        Args:
            arguments: of Python.
            options: of Popen; `env` is added to the environment.
        """
        options["env"] = self.environment | options.get("env", {})
        command = [sys.executable, *map(str, arguments)]
        return subprocess.Popen(
            command, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        )

    def end(self) -> None:
        """Ends every process of the cluster."""
        for process in self._started:
            kill(family(process.pid))
            process.wait()
        self._cluster.shutdown()


@contextlib.contextmanager
def starting_clusters() -> Iterator[Callable[..., RayCluster]]:
    """Yields a function that starts a cluster; ends all these clusters at the end."""
    with contextlib.ExitStack() as ends:

        def start(nodes: int = 2, labels: list[Mapping[str, str]] | None = None, **head: object) -> RayCluster:
            # Paths of sockets may have at most 107 characters.
            folder = ends.enter_context(
                tempfile.TemporaryDirectory(prefix="rc", dir="/tmp", ignore_cleanup_errors=True)
            )
            os.environ["RAY_TMPDIR"] = folder
            ends.callback(os.environ.pop, "RAY_TMPDIR", None)  # a test may start two clusters
            started = RayCluster(Path(folder), **head)
            ends.callback(started.end)
            for node in range(nodes):
                started.add_node(labels=labels[node] if labels else None)
            return started

        yield start


@pytest.fixture
def cluster() -> Iterator[Callable[..., RayCluster]]:
    """Starts a cluster: `cluster(nodes=2, labels=[...])`; its nodes have 2 CPUs each. The cluster ends after the test."""
    with starting_clusters() as start:
        yield start


@pytest.fixture(scope="session")
def clusters() -> Callable[[], contextlib.AbstractContextManager[Callable[..., RayCluster]]]:
    """Returns `starting_clusters`, for fixtures of clusters that tests share."""
    return starting_clusters


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    """Waits until `condition()` is true; fails if the process `of` ends before."""

    def wait(condition: Callable[[], object], *, of: subprocess.Popen | None = None, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert of is None or of.poll() is None, f"the process ended with {of.returncode}: {of.stderr.read()}"
            assert time.monotonic() < deadline, "the condition did not become true"
            time.sleep(0.05)

    return wait
