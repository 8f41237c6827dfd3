"""Real Ray clusters of several nodes on this machine, for what happens when some of it breaks.

The commands under test run as a user runs them, in processes of their own that find the cluster by RAY_ADDRESS; so nothing
here meets the Ray of tests/on_ray, and a cluster may die without taking the tests along.
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
    # A node without a sign of life is taken for dead after 5 s; Ray's default is 15 s.
    RAY_health_check_period_ms="1000",
    RAY_raylet_start_wait_time_s="120",  # other tests may want the CPUs as well
)
os.environ.pop("RAY_ADDRESS", None)  # never a cluster that somebody uses

import pytest

import waver.on_ray  # noqa: F401  its environment, before Ray

REPOSITORY = Path(__file__).parents[2]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder is `cluster` and `ray`, and in one process: two clusters at a time would starve each other.

    `ray` keeps it out of the fast lane, whose `-m` replaces the `-m 'not cluster'` of pyproject.toml.
    """
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.xdist_group("cluster"))


class RayCluster:
    """A head without CPUs, and nodes that come and go. Every node is a raylet on this machine."""

    def __init__(self, folder: Path, **head: object):
        from ray.cluster_utils import Cluster

        self.folder = folder
        """Ray's own, with its logs."""
        self._started: list[subprocess.Popen] = []
        # The head has no agent of jobs and no dashboard, unless asked.
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 150 * 2**20, **head}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)

    @property
    def address(self) -> str:
        """For RAY_ADDRESS."""
        return self._cluster.address

    @property
    def head(self):
        """The node where a driver of this machine is at home."""
        return self._cluster.head_node

    @property
    def nodes(self) -> list:
        """All but the head."""
        return list(self._cluster.worker_nodes)

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that is to use this cluster and this clone of waver."""
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        return {**os.environ, "RAY_ADDRESS": self.address, "PYTHONPATH": path}

    def add_node(self, cpus: int = 2, labels: Mapping[str, str] | None = None, **arguments: object):
        """Starts a node and waits until the cluster knows it. Only from the main thread.

        Args:
            cpus: that it says to have.
            labels: of the node, such as {"waver.role": "train"}.
            arguments: of `ray.cluster_utils.Cluster.add_node`.
        """
        return self._cluster.add_node(num_cpus=cpus, labels=dict(labels or {}), **arguments)

    def start_node(self, cpus: int = 2, *, before: Sequence[str] = (), python_path: Sequence[Path] = ()) -> None:
        """Starts a node by `ray start`, in surroundings of its own.

        Args:
            cpus: that it says to have.
            before: a command that runs the one that is put behind it.
            python_path: folders where this node finds packages first.
        """
        environment = self.environment
        environment["PYTHONPATH"] = os.pathsep.join([*map(str, python_path), environment["PYTHONPATH"]])
        command = [
            *before,
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
        """Of a node: its raylet, agents and workers, and what these started; children before their parents."""
        raylets = [entry.process.pid for entry in node.all_processes["raylet"]]
        return [process for raylet in raylets for process in family(raylet)]

    def kill_node(self, node) -> None:
        """As if its machine lost power: raylet and workers end at once, without a word."""
        kill(self.processes(node))
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_raylet(self, node) -> None:
        """Ends the process of a node that talks to the cluster; its workers notice, and end themselves."""
        kill([entry.process.pid for entry in node.all_processes["raylet"]])

    def drain_node(self, node, *, deadline_s: float) -> None:
        """Tells the cluster that a node will be taken away after so many seconds."""
        drain = ["drain-node", f"--address={self.address}", f"--node-id={node.node_id}"]
        why = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test"]
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            *drain,
            *why,
            f"--deadline-remaining-seconds={deadline_s}",
        ]
        subprocess.run(command, env=self.environment, check=True, capture_output=True)

    def alive(self) -> int:
        """Nodes that the cluster takes for alive, its head among them."""
        return len(self._cluster.global_state._live_node_ids())

    def start(self, *arguments: object, **options: object) -> subprocess.Popen:
        """Starts `python *arguments` on this cluster; `-m waver train ...`, for example.

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
        """Ends every process of it."""
        for process in self._started:
            kill(family(process.pid))
            process.wait()
        self._cluster.shutdown()


@contextlib.contextmanager
def starting_clusters() -> Iterator[Callable[..., RayCluster]]:
    """Yields a function that starts a cluster; at the end all that it started are ended."""
    with contextlib.ExitStack() as ends:

        def start(nodes: int = 2, labels: list[Mapping[str, str]] | None = None, **head: object) -> RayCluster:
            # Paths of sockets may have 107 characters.
            folder = ends.enter_context(
                tempfile.TemporaryDirectory(prefix="rc", dir="/tmp", ignore_cleanup_errors=True)
            )
            os.environ["RAY_TMPDIR"] = folder
            ends.callback(os.environ.pop, "RAY_TMPDIR", None)  # a test may start two
            started = RayCluster(Path(folder), **head)
            ends.callback(started.end)
            for node in range(nodes):
                started.add_node(labels=labels[node] if labels else None)
            return started

        yield start


@pytest.fixture
def cluster() -> Iterator[Callable[..., RayCluster]]:
    """Starts a cluster: `cluster(nodes=2, labels=[...])`; its nodes have 2 CPUs each. Ended after the test."""
    with starting_clusters() as start:
        yield start


@pytest.fixture(scope="session")
def clusters() -> Callable[[], contextlib.AbstractContextManager[Callable[..., RayCluster]]]:
    """`starting_clusters`, for fixtures of clusters that tests share."""
    return starting_clusters


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    """Waits until `condition()`, while the process `of` lives."""

    def wait(condition: Callable[[], object], *, of: subprocess.Popen | None = None, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert of is None or of.poll() is None, f"it ended with {of.returncode}: {of.stderr.read()}"
            assert time.monotonic() < deadline, "waited for nothing"
            time.sleep(0.05)

    return wait
