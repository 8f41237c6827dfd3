"""Training on real clusters with faults: killed processes, lost nodes, full disks.

After each fault the run ends with the metrics of an undisturbed run, and its log has each step once. The tests print how
long a run took to continue (`pytest -s`), for the table in cluster/README.md.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rays import kill, titled

from waver.config import ExperimentConfig, load_config
from waver.on_ray.stages.train import train_in_process
from waver.runs.folder import describe_checkpoint, newest_checkpoint, read_result
from waver.runs.inputs import load_captions, open_store
from waver.runs.tracking import read_metrics
from waver.runs.train import train

REPOSITORY = Path(__file__).parents[2]
EVERY = 10
"""Steps between checkpoints."""
SETTINGS = {
    "train": {"epochs": 2, "captions_per_clip": 20},
    "checkpoint": {"every_steps": EVERY},
    "tracking": {"images": False},
    # A node of 2 CPUs has capacity for one worker, with or without a loader. Loaders cost two more processes for each group,
    # so only runs that test their loss have them.
    "resources": {"workers": 2, "cpus_per_worker": 1.5, "loaders_per_worker": 0, "timeout_s": 60, "wait_s": 60},
}
NUM_STEPS, NUM_LONGER = 120, 600
LOADERS = "resources.loaders_per_worker=1"
LONGER = {"train.captions_per_clip": 100, "train.lr": 1e-4}
"""600 steps, for several or slow faults. A higher learning rate would turn the last bits of two workers' sums into other
ranks."""


@pytest.fixture(scope="module")
def project(tmp_path_factory, build_project, captions) -> Path:
    return build_project(tmp_path_factory.mktemp("project"), captions, **SETTINGS)


def experiment(project: Path, name: str, **overrides) -> ExperimentConfig:
    return load_config(project / "experiment.yaml", {"name": name, **overrides})


@pytest.fixture(scope="module")
def undisturbed(project) -> dict:
    """The last validation of a run without faults."""
    return train_here(project, "undisturbed")


@pytest.fixture(scope="module")
def undisturbed_longer(project) -> dict:
    return train_here(project, "undisturbed-longer", **LONGER)


def train_here(project: Path, name: str, **overrides) -> dict:
    """Trains in this process; returns the last validation."""
    config = experiment(project, name, **{"resources.workers": 1, "resources.loaders_per_worker": 0}, **overrides)
    captions = load_captions(config)
    train(config, captions, open_store(config, captions), launch=train_in_process)
    return read_metrics(config.run_folder)[-1]


@pytest.fixture(scope="module")
def two_nodes(clusters):
    """A cluster shared by tests that break their runs but not the cluster."""
    with clusters() as start:
        yield start(nodes=2)


class Run:
    """A `waver train` command on a cluster; with the address of a dashboard, it is submitted as a job."""

    def __init__(self, cluster, project: Path, name: str, *overrides: str, dashboard: str = "", longer: bool = False):
        overrides += tuple(f"{key}={value}" for key, value in LONGER.items()) if longer else ()
        self.config = experiment(project, name)
        self.folder = self.config.run_folder
        settings = [part for override in overrides for part in ("--set", override)]
        train = ["-m", "waver", "train", project / "experiment.yaml", "--set", f"name={name}", *settings]
        # A job runs the copy of the clone that is submitted with it.
        job = [
            "-m",
            "ray.scripts.scripts",
            "job",
            "submit",
            "--address",
            dashboard,
            "--working-dir",
            ".",
            "--",
            "python",
        ]
        self._command = [*(job if dashboard else []), *train]
        self.start(cluster)

    def start(self, cluster) -> None:
        """Starts the command; may be called again."""
        self.process = cluster.start(*self._command, cwd=REPOSITORY)

    def steps(self) -> list[int]:
        return [row["step"] for row in read_metrics(self.folder) if "split" not in row]

    def step(self) -> int:
        return max(self.steps(), default=0)

    def saved(self) -> int:
        """Returns the step of the newest checkpoint."""
        newest = newest_checkpoint(self.folder)
        if newest is None:
            return 0
        _, _, step = newest.name.partition("_step_")
        epochs_end = {row["epoch"]: row["step"] for row in read_metrics(self.folder) if "split" in row}
        return int(step) if step else epochs_end[int(newest.name[-4:])]

    def wait_until(self, step: int, wait_for) -> None:
        wait_for(lambda: self.step() >= step, of=self.process, timeout_s=120)

    def end(self, timeout_s: float = 240) -> str:
        """Waits until the run has finished; returns its stderr."""
        stderr = self.process.communicate(timeout=timeout_s)[1]
        assert self.process.returncode == 0, stderr
        assert "Traceback" not in stderr
        return stderr


@contextlib.contextmanager
def continues_after(run: Run, fault: str, wait_for, *, interval: int = EVERY):
    """Checks that the run takes new steps after the fault in the body, and repeats at most two checkpoint intervals."""

    def num_starts() -> int:
        """Counts the groups so far: each one truncates the log to its checkpoint, and then creates a file of events."""
        return len(list((run.folder / "events").glob("events.out.*")))

    step_before, starts_before = run.step(), num_starts()
    yield
    start, lost = time.monotonic(), max(run.step(), step_before) - run.saved()
    assert lost <= 2 * interval, "the newest checkpoint is further back than two intervals"
    wait_for(lambda: num_starts() > starts_before, of=run.process, timeout_s=120)
    first = run.step()
    wait_for(lambda: run.step() > first, of=run.process, timeout_s=120)
    print(f"\n{fault}: {time.monotonic() - start:.1f} s until the next step; {lost} steps repeated")


def assert_ended_like(run: Run, undisturbed: dict, num_steps: int = NUM_STEPS) -> None:
    assert read_result(run.folder)
    assert run.steps() == list(range(1, num_steps + 1)), "each step once"
    last = read_metrics(run.folder)[-1]
    for name, value in undisturbed.items():
        if name not in ("memory_of_worker_gib", "split"):
            assert last[name] == pytest.approx(value, abs=1e-3), name


def workers_of(cluster, node) -> list[int]:
    """Returns the processes of a node that train."""
    return titled(cluster.processes(node), "ray::RayTrainWorker")


def test_a_run_continues_after_a_worker_a_raylet_and_the_driver_are_killed(
    cluster, project, undisturbed_longer, wait_for
):
    """The faults follow each other in one run; another node replaces the lost one."""
    ray_cluster = cluster(nodes=2)
    run = Run(ray_cluster, project, "killed", LOADERS, "resources.max_failures=8", longer=True)
    run.wait_until(25, wait_for)
    for node in ray_cluster.nodes:
        assert len(titled(ray_cluster.processes(node), "(_Loader)")) == len(workers_of(ray_cluster, node)), (
            "loaders run on the node of their worker"
        )
    assert titled(ray_cluster.processes(ray_cluster.head), "ray::SignalActor"), (
        "on another node, the run would end with that node"
    )
    with continues_after(run, "worker killed with -9", wait_for):
        victim = next(pids[0] for node in ray_cluster.nodes if (pids := workers_of(ray_cluster, node)))
        os.kill(victim, signal.SIGKILL)
    run.wait_until(run.step() + 15, wait_for)
    with continues_after(run, "raylet killed, another node joins", wait_for):
        ray_cluster.kill_raylet(ray_cluster.nodes[0])
        ray_cluster.add_node()
    run.wait_until(run.step() + 15, wait_for)
    with continues_after(run, "driver killed with -9, started again", wait_for):
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.communicate()
        run.start(ray_cluster)
    assert "continuing killed after step" in run.end()
    assert_ended_like(run, undisturbed_longer, num_steps=NUM_LONGER)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_job_survives_the_loss_of_a_node(cluster, project, undisturbed, wait_for):
    """The job is submitted as users do it: `ray job submit` from a clone, with paths that every node sees."""
    # Another Ray of this machine may use the default ports; without the port of its agent, a head starts no job.
    port, agent = free_port(), free_port()
    ray_cluster = cluster(nodes=2, include_dashboard=True, dashboard_port=port, dashboard_agent_listen_port=agent)
    run = Run(ray_cluster, project, "job", dashboard=f"http://127.0.0.1:{port}")
    run.wait_until(15, wait_for)
    with continues_after(run, "a job loses a node, another joins", wait_for):
        ray_cluster.kill_node(ray_cluster.nodes[0])
        ray_cluster.add_node()
    run.end()
    assert_ended_like(run, undisturbed)


def test_an_elastic_run_grows_when_a_node_joins_and_shrinks_when_it_is_lost(
    cluster, project, undisturbed_longer, wait_for
):
    """The global batch keeps its size."""
    ray_cluster = cluster(nodes=1)
    elastic = ("resources.workers={min: 1, max: 2}", "resources.resize_every_s=2", "resources.max_failures=8")
    run = Run(ray_cluster, project, "elastic", *elastic, longer=True)
    run.wait_until(15, wait_for)
    late, start = ray_cluster.add_node(), time.monotonic()
    wait_for(lambda: workers_of(ray_cluster, late), of=run.process, timeout_s=120)
    first = run.step()
    wait_for(lambda: run.step() > first + 10, of=run.process, timeout_s=120)
    print(f"\na node joins late: {time.monotonic() - start:.1f} s until two workers train")
    with continues_after(run, "node lost for good, elastic", wait_for):
        ray_cluster.kill_node(late)
    groups = re.findall(r"starting ([12]) workers \(elastic: 1 to 2\)", run.end())
    assert groups == ["1", "2", "1"], "no group starts without reason"
    assert_ended_like(run, undisturbed_longer, num_steps=NUM_LONGER)


def test_a_run_whose_head_is_lost_continues_on_another_cluster(cluster, project, undisturbed, wait_for, monkeypatch):
    """The nodes and the driver wait for the lost head, and give up."""
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "8")  # Ray's default is 60
    first = cluster(nodes=2)
    run = Run(first, project, "head")
    run.wait_until(40, wait_for)
    kill([entry.process.pid for processes in first.head.all_processes.values() for entry in processes])
    start = time.monotonic()
    try:
        stderr = run.process.communicate(timeout=150)[1]
    except subprocess.TimeoutExpired:
        run.process.kill()
        raise AssertionError("the driver still waits for the lost head") from None
    print(f"\nhead lost: the driver ends after {time.monotonic() - start:.1f} s with {run.process.returncode}")
    assert run.process.returncode != 0, stderr
    first.end()
    second = cluster(nodes=2)
    if run.step() < NUM_STEPS:
        with continues_after(run, "another head, run submitted again", wait_for):
            run.start(second)
    else:  # the workers have finished training without the head
        run.start(second)
    assert "continuing head after" in run.end()
    assert_ended_like(run, undisturbed)


FILLER = """
import sys, time, numpy, ray
ray.init()
kept = [ray.put(numpy.zeros(2**20, numpy.uint8)) for _ in range(400)]
print("full", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def full_object_store(two_nodes) -> Iterator[Callable[[], None]]:
    """Returns a function that fills the object stores until the end of the test.

    Another driver puts objects of several times the size of a node's object store: Ray spills them to the disk.
    """
    with contextlib.ExitStack() as ends:

        def fill() -> None:
            filler = two_nodes.start("-c", FILLER, stdin=subprocess.PIPE)
            ends.callback(filler.communicate)
            ends.callback(filler.kill)
            assert filler.stdout.readline() == "full\n", filler.stderr.read()

        yield fill


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 MiB, enough for ten checkpoints."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", place], check=False).returncode:
        pytest.skip("only root may mount a file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_run_that_failed_on_a_full_disk_continues_and_finishes_although_the_object_store_is_full(
    two_nodes, project, undisturbed, small_disk, full_object_store, wait_for
):
    """The run's folder is on a disk that fills up before a checkpoint. Then the object store is full."""
    folder = experiment(project, "full-disk").run_folder
    folder.parent.mkdir(exist_ok=True)
    folder.symlink_to(small_disk)
    run = Run(two_nodes, project, "full-disk")
    run.wait_until(25, wait_for)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(2**12))
            file.flush()
    stderr = run.process.communicate(timeout=120)[1]
    assert run.process.returncode == 1
    assert "no space is left on the disk" in stderr
    assert "Traceback" not in stderr
    saved = run.saved()
    assert saved > 0
    filler.unlink()
    full_object_store()
    again = Run(two_nodes, project, "full-disk", LOADERS)
    assert f"continuing full-disk after {describe_checkpoint(newest_checkpoint(folder))}" in again.end()
    assert_ended_like(again, undisturbed)


def test_a_run_continues_after_sigterm_and_skips_a_truncated_checkpoint(two_nodes, project, undisturbed, wait_for):
    """`ray job stop` and the shutdown of a machine send SIGTERM. Later the driver is killed, and files are damaged."""
    run = Run(two_nodes, project, "asked", "checkpoint.every_steps=null")
    run.wait_until(15, wait_for)
    start = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    stderr = run.process.communicate(timeout=60)[1]
    took = time.monotonic() - start
    assert run.process.returncode == 143, stderr
    assert f"stopped on request after step {run.step()}" in stderr
    assert "Traceback" not in stderr
    assert run.saved() == run.step()
    print(f"\nSIGTERM: {took:.1f} s until a checkpoint is written and the process has ended")

    stopped_at = run.step()
    run = Run(two_nodes, project, "asked")
    run.wait_until(NUM_STEPS // 2 + 5, wait_for)
    os.kill(run.process.pid, signal.SIGKILL)
    assert f"continuing asked after step {stopped_at}, in epoch 1" in run.process.communicate()[1]
    newest = newest_checkpoint(run.folder)
    os.truncate(newest / "model.safetensors", 1000)
    (run.folder / ".checkpoint.part").mkdir(exist_ok=True)
    (run.folder / ".checkpoint.part" / "training.pt").write_bytes(b"half of it")
    before = newest_checkpoint(run.folder)
    assert before.name < newest.name

    shard = next((run.config.clip_store / "clips").glob("*.parquet"))
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    broken = Run(two_nodes, project, "asked")
    stderr = broken.process.communicate(timeout=120)[1]
    assert broken.process.returncode == 1
    assert f"run `waver ingest {project}/experiment.yaml --set name=asked` to decode" in stderr
    assert "Traceback" not in stderr
    shard.write_bytes(content)

    again = Run(two_nodes, project, "asked")
    assert f"continuing asked after {describe_checkpoint(before)}" in again.end()
    assert_ended_like(again, undisturbed)


def test_a_run_saves_a_checkpoint_when_its_node_is_drained_and_continues_on_another(
    cluster, project, undisturbed_longer, wait_for, monkeypatch
):
    """Ray drains a node when its cloud announces a preemption."""
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")  # Ray Train's default
    ray_cluster = cluster(nodes=2)
    run = Run(ray_cluster, project, "drained", "checkpoint.every_steps=null", longer=True)
    run.wait_until(15, wait_for)
    start, drained = time.monotonic(), ray_cluster.nodes[0]
    with continues_after(run, "a node is drained within 15 s, another joins", wait_for, interval=NUM_LONGER):
        ray_cluster.drain_node(drained, deadline_s=15)
        ray_cluster.add_node()
        wait_for(lambda: list(run.folder.glob("checkpoint_*_step_*")), of=run.process)
        print(f"\ndrained: {time.monotonic() - start:.1f} s until a checkpoint is written")
    ray_cluster.kill_node(drained)
    run.end()
    assert_ended_like(run, undisturbed_longer, num_steps=NUM_LONGER)


def test_a_group_without_capacity_fails_without_a_traceback(two_nodes, project, wait_for, monkeypatch):
    """The last test of the shared cluster, which loses a node."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "6")  # waver's own are 20, and 60 after a loss
    run = Run(
        two_nodes,
        project,
        "no-capacity",
        "resources.workers={min: 2, max: 3}",
        "resources.wait_s=0",
        "resources.max_failures=1",
    )
    run.wait_until(15, wait_for)
    two_nodes.kill_node(two_nodes.nodes[0])
    stderr = run.process.communicate(timeout=240)[1]
    assert run.process.returncode == 1
    assert "the cluster had no capacity for the workers any more" in stderr
    assert "Traceback" not in stderr
    assert json.loads((run.folder / "data.json").read_text())
