"""What becomes of training when some of the cluster breaks: real nodes, real kills.

Whatever happens, the run ends as one that nothing happened to, and each step stands in its log once. How long it took to go
on is printed (`pytest -s`), for the table in cluster/README.md.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from rays import kill, titled

from waver.config import ExperimentConfig, load_config
from waver.on_ray.stages.train import train
from waver.on_ray.stages.train_worker import train_job
from waver.runs.folder import describe_checkpoint, newest_checkpoint, read_result
from waver.runs.inputs import load_captions, open_store
from waver.runs.tracking import read_metrics

REPOSITORY = Path(__file__).parents[2]
EVERY = 10
"""Steps between checkpoints."""
SETTINGS = {
    "train": {"epochs": 2, "captions_per_clip": 40},  # 240 steps
    "checkpoint": {"every_steps": EVERY},
    "tracking": {"images": False},
    # A node of 2 CPUs has room for one worker, with its loader if it has one. Loaders are two more processes for each group:
    # only runs in which they may break have them.
    "resources": {"workers": 2, "cpus_per_worker": 1.5, "loaders_per_worker": 0, "timeout_s": 60, "wait_s": 60},
}
NUM_STEPS = 240
LOADERS = "resources.loaders_per_worker=1"
LONGER = {"train.captions_per_clip": 150, "train.lr": 1e-4}
"""900 steps, for what takes its time; with smaller ones, or the last bits of two workers' sums would become other ranks."""


@pytest.fixture(scope="module")
def project(tmp_path_factory, build_project, captions) -> Path:
    return build_project(tmp_path_factory.mktemp("project"), captions, **SETTINGS)


def experiment(project: Path, name: str, **overrides) -> ExperimentConfig:
    return load_config(project / "experiment.yaml", {"name": name, **overrides})


@pytest.fixture(scope="module")
def undisturbed(project) -> dict:
    """What a run comes to that nothing happens to."""
    return train_here(project, "undisturbed")


@pytest.fixture(scope="module")
def undisturbed_longer(project) -> dict:
    return train_here(project, "undisturbed-longer", **LONGER)


def train_here(project: Path, name: str, **overrides) -> dict:
    """Trains in this process; returns the last validation."""
    import ray
    import torch

    config = experiment(project, name, **{"resources.workers": 1, "resources.loaders_per_worker": 0}, **overrides)
    captions = load_captions(config)

    def here(job):
        return train_job(job, device=torch.device("cpu"), report=lambda metrics: None)

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        train(config, captions, open_store(config, captions), local_worker=here)
    finally:
        ray.shutdown()
    return read_metrics(config.run_folder)[-1]


@pytest.fixture(scope="module")
def two_nodes(clusters):
    """A cluster that some tests share: they break runs, and leave it as it is."""
    with clusters() as start:
        yield start(nodes=2)


class Run:
    """A `waver train` of its own on a cluster, or a job with it where the address of a dashboard is given."""

    def __init__(self, cluster, project: Path, name: str, *overrides: str, dashboard: str = "", longer: bool = False):
        overrides += tuple(f"{key}={value}" for key, value in LONGER.items()) if longer else ()
        self.config = experiment(project, name)
        self.folder = self.config.run_folder
        settings = [part for override in overrides for part in ("--set", override)]
        train = ["-m", "waver", "train", project / "experiment.yaml", "--set", f"name={name}", *settings]
        # A job computes with the copy of the clone that goes along.
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
        """The same command, also a second time."""
        self.process = cluster.start(*self._command, cwd=REPOSITORY)

    def steps(self) -> list[int]:
        return [row["step"] for row in read_metrics(self.folder) if "split" not in row]

    def step(self) -> int:
        return max(self.steps(), default=0)

    def saved(self) -> int:
        """Step of the newest checkpoint."""
        newest = newest_checkpoint(self.folder)
        if newest is None:
            return 0
        _, _, step = newest.name.partition("_step_")
        epochs_end = {row["epoch"]: row["step"] for row in read_metrics(self.folder) if "split" in row}
        return int(step) if step else epochs_end[int(newest.name[-4:])]

    def wait_until(self, step: int, wait_for) -> None:
        wait_for(lambda: self.step() >= step, of=self.process, timeout_s=120)

    def end(self, timeout_s: float = 240) -> str:
        """Waits for it; returns what it said."""
        said = self.process.communicate(timeout=timeout_s)[1]
        assert self.process.returncode == 0, said
        assert "Traceback" not in said
        return said


@contextlib.contextmanager
def going_on_after(run: Run, fault: str, wait_for, *, interval: int = EVERY):
    """The body breaks something; then the run takes new steps, having repeated at most one interval of checkpoints."""

    def beginnings() -> int:
        """Whoever takes over shortens the log to the checkpoint and then begins a file of events; survivors do not."""
        return len(list((run.folder / "events").glob("events.out.*")))

    before, begun = run.step(), beginnings()
    yield
    start, lost = time.monotonic(), max(run.step(), before) - run.saved()
    assert lost <= 2 * interval, "the newest checkpoint is further back than an interval"
    wait_for(lambda: beginnings() > begun, of=run.process, timeout_s=120)
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
    """Processes of a node that train."""
    return titled(cluster.processes(node), "ray::RayTrainWorker")


def test_a_worker_is_killed_then_its_raylet_then_the_driver(cluster, project, undisturbed, wait_for):
    """Three faults of one run, one after the other; the lost node is replaced by one that joins late."""
    here = cluster(nodes=2)
    run = Run(here, project, "killed", LOADERS, "resources.max_failures=8")
    run.wait_until(25, wait_for)
    for node in here.nodes:
        assert len(titled(here.processes(node), "(_Loader)")) == len(workers_of(here, node)), (
            "loaders are where their workers are"
        )
    assert titled(here.processes(here.head), "ray::SignalActor"), "or the run would end with another node"
    with going_on_after(run, "worker killed with -9", wait_for):
        victim = next(pids[0] for node in here.nodes if (pids := workers_of(here, node)))
        os.kill(victim, signal.SIGKILL)
    run.wait_until(run.step() + 15, wait_for)
    with going_on_after(run, "raylet killed, another node joins", wait_for):
        here.kill_raylet(here.nodes[0])
        here.add_node()
    run.wait_until(run.step() + 15, wait_for)
    with going_on_after(run, "driver killed with -9, started again", wait_for):
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.communicate()
        run.start(here)
    assert "continuing killed after step" in run.end()
    assert_ended_like(run, undisturbed)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_job_survives_the_loss_of_a_node(cluster, project, undisturbed, wait_for):
    """As users start it: `ray job submit` from a clone, with paths that every node sees."""
    # Another Ray of this machine may have the usual ports, and without its agent's a head starts no job.
    port, agent = free_port(), free_port()
    here = cluster(nodes=2, include_dashboard=True, dashboard_port=port, dashboard_agent_listen_port=agent)
    run = Run(here, project, "job", LOADERS, dashboard=f"http://127.0.0.1:{port}")
    run.wait_until(15, wait_for)
    with going_on_after(run, "a job loses a node, another joins", wait_for):
        here.kill_node(here.nodes[0])
        here.add_node()
    run.end()
    assert_ended_like(run, undisturbed)


def test_a_node_is_lost_for_good_and_another_comes_later(cluster, project, undisturbed_longer, wait_for):
    """An elastic run: it begins with the one node that there is, grows, and shrinks again; the global batch stays."""
    here = cluster(nodes=1)
    elastic = ("resources.workers={min: 1, max: 2}", "resources.resize_every_s=5", "resources.max_failures=8")
    run = Run(here, project, "elastic", LOADERS, *elastic, longer=True)
    run.wait_until(15, wait_for)
    late, start = here.add_node(), time.monotonic()
    wait_for(lambda: workers_of(here, late), of=run.process, timeout_s=120)
    first = run.step()
    wait_for(lambda: run.step() > first + 10, of=run.process, timeout_s=120)
    print(f"\na node joins late: {time.monotonic() - start:.1f} s until two workers train")
    with going_on_after(run, "node lost for good, elastic", wait_for):
        here.kill_node(late)
    groups = re.findall(r"starting ([12]) workers \(elastic: 1 to 2\)", run.end())
    assert groups == ["1", "2", "1"], "none for nothing"
    assert_ended_like(run, undisturbed_longer, num_steps=900)


def test_the_head_is_lost(cluster, project, undisturbed, wait_for, monkeypatch):
    """Its nodes and the driver wait for it and give up; another cluster takes the run up."""
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "8")  # Ray's own: 60
    first = cluster(nodes=2)
    run = Run(first, project, "head")
    run.wait_until(40, wait_for)
    kill([entry.process.pid for processes in first.head.all_processes.values() for entry in processes])
    start = time.monotonic()
    try:
        said = run.process.communicate(timeout=150)[1]
    except subprocess.TimeoutExpired:
        run.process.kill()
        raise AssertionError("the driver waits for a head that is gone") from None
    print(f"\nhead lost: the driver ends after {time.monotonic() - start:.1f} s with {run.process.returncode}")
    assert run.process.returncode != 0, said
    first.end()
    second = cluster(nodes=2)
    if run.step() < NUM_STEPS:
        with going_on_after(run, "another head, run submitted again", wait_for):
            run.start(second)
    else:  # without their head the workers came to the end
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


def test_the_object_store_is_full(two_nodes, project, undisturbed, wait_for):
    """Somebody else's objects fill what every node has three times over: Ray spills them to the disk."""
    filler = two_nodes.start("-c", FILLER, stdin=subprocess.PIPE)
    try:
        assert filler.stdout.readline() == "full\n", filler.stderr.read()
        run = Run(two_nodes, project, "full-store", LOADERS)
        run.end()
    finally:
        filler.kill()
        filler.communicate()
    assert_ended_like(run, undisturbed)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 MiB: ten checkpoints."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", place], check=False).returncode:
        pytest.skip("only root may mount a file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_the_disk_is_full_at_a_checkpoint(two_nodes, project, undisturbed, small_disk, wait_for):
    """The run's folder is on a disk that fills up; when there is room again the same command goes on."""
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
    said = run.process.communicate(timeout=120)[1]
    assert run.process.returncode == 1
    assert "no space is left on the disk" in said
    assert "Traceback" not in said
    saved = run.saved()
    assert saved > 0
    filler.unlink()
    again = Run(two_nodes, project, "full-disk")
    assert f"continuing full-disk after {describe_checkpoint(newest_checkpoint(folder))}" in again.end()
    assert_ended_like(again, undisturbed)


def test_a_checkpoint_is_half_written_and_a_shard_is_damaged(two_nodes, project, undisturbed, wait_for):
    """The driver dies; what it left of its newest checkpoint is cut short, and so is a file of the clip store."""
    run = Run(two_nodes, project, "half")
    run.wait_until(NUM_STEPS // 2 + 25, wait_for)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.communicate()
    newest = newest_checkpoint(run.folder)
    os.truncate(newest / "model.safetensors", 1000)
    (run.folder / ".checkpoint.part").mkdir(exist_ok=True)
    (run.folder / ".checkpoint.part" / "training.pt").write_bytes(b"half of it")
    before = newest_checkpoint(run.folder)
    assert before.name < newest.name
    shard = next((run.config.clip_store / "clips").glob("*.parquet"))
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    broken = Run(two_nodes, project, "half")
    said = broken.process.communicate(timeout=120)[1]
    assert broken.process.returncode == 1
    assert "waver ingest CONFIG" in said
    assert "Traceback" not in said
    shard.write_bytes(content)
    again = Run(two_nodes, project, "half")
    assert f"continuing half after {describe_checkpoint(before)}" in again.end()
    assert_ended_like(again, undisturbed)


def test_sigterm_saves_the_step_it_hears_of(two_nodes, project, undisturbed, wait_for):
    """As `ray job stop` does, and whoever takes a machine away."""
    run = Run(two_nodes, project, "asked", "checkpoint.every_steps=null")
    run.wait_until(15, wait_for)
    start = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    said = run.process.communicate(timeout=60)[1]
    took = time.monotonic() - start
    assert run.process.returncode == 143, said
    assert f"stopped on request after step {run.step()}" in said
    assert "Traceback" not in said
    assert run.saved() == run.step()
    print(f"\nSIGTERM: {took:.1f} s until a checkpoint is written and the process has ended")
    again = Run(two_nodes, project, "asked")
    assert f"continuing asked after step {run.step()}, in epoch 1" in again.end()
    assert_ended_like(again, undisturbed)


def test_a_node_that_will_be_taken_away_is_left_in_time(cluster, project, undisturbed_longer, wait_for, monkeypatch):
    """As clouds announce it: Ray drains the node, training saves itself at once, and another node takes over."""
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")  # as Ray Train has it
    here = cluster(nodes=2)
    run = Run(here, project, "drained", "checkpoint.every_steps=null", longer=True)
    run.wait_until(15, wait_for)
    start, going = time.monotonic(), here.nodes[0]
    with going_on_after(run, "a node is drained within 15 s, another joins", wait_for, interval=900):
        here.drain_node(going, deadline_s=15)
        here.add_node()
        wait_for(lambda: list(run.folder.glob("checkpoint_*_step_*")), of=run.process)
        print(f"\ndrained: {time.monotonic() - start:.1f} s until a checkpoint is written")
    here.kill_node(going)
    run.end()
    assert_ended_like(run, undisturbed_longer, num_steps=900)


@pytest.mark.parametrize("workers", ["2", "{min: 2, max: 3}"])
def test_a_group_without_room_gives_up_in_a_sentence(cluster, project, wait_for, monkeypatch, workers):
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "6")  # else 20, and 60 for a lost node
    here = cluster(nodes=2)
    run = Run(
        here, project, "no-room", f"resources.workers={workers}", "resources.wait_s=0", "resources.max_failures=1"
    )
    run.wait_until(15, wait_for)
    here.kill_node(here.nodes[0])
    said = run.process.communicate(timeout=240)[1]
    assert run.process.returncode == 1
    assert "the cluster had no capacity for the workers any more" in said
    assert "Traceback" not in said
    assert json.loads((run.folder / "data.json").read_text())
