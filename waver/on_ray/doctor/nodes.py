"""What `waver doctor` tries on a cluster: that all nodes run the same code, see one storage, reach each other, add up.

On each node sits an actor that takes no CPU. It says what is installed, writes and reads below the storage, and connects to
the others. Only then do workers exchange tensors, since there a wall between two nodes shows as nothing but silence. Every
step has a time limit.
"""

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from waver.config import ExperimentConfig
from waver.doctor.findings import Finding, some
from waver.on_ray.doctor.node_actor import _CONNECT_S, _SEEN_S, _OnNode, _remove, _unseen, _write
from waver.runs.environment import environment
from waver.tools.object_store import display_path

_SAME = ("python", "ray", "torch", "waver", "open_clip_torch", "git_commit")
"""What must be equal everywhere: other code, other figures, or no figures at all."""
_BETTER_SAME = ("numpy", "pyarrow", "av", "decord")
_STEP_S = 60.0
"""For each step of all nodes; the first has a process to start on each."""
_SKEW_S = 2.0


@dataclass(frozen=True)
class _Node:
    name: str
    actor: Any


def check_nodes(config: ExperimentConfig) -> Iterator[Finding]:
    """Asks every node of the connected cluster: versions, clocks, GPUs, storage, and who reaches whom."""
    with _actors() as (nodes, silent):
        if silent:
            yield _silence(silent)
        try:
            yield from _check_versions(nodes)
            yield from _check_storage(nodes, config.storage.folder)
            yield from _check_connections(nodes)
        except _Silent as error:
            yield _silence(error.names)


class _Silent(RuntimeError):
    """Nodes did not answer in a step's time."""

    def __init__(self, names: list[str]):
        super().__init__(", ".join(names))
        self.names = names


def _silence(names: list[str]) -> Finding:
    remedy = "look at them with `ray list nodes` and at their logs, or take them out of the cluster"
    return Finding("error", "nodes", f"{some(names)} did not answer in {_STEP_S:g} s", remedy, details=names)


@contextmanager
def _actors() -> Iterator[tuple[list[_Node], list[str]]]:
    """An actor on each node that is alive, and the names of nodes where none would start."""
    nodes = []
    for node in ray.nodes():
        if node["Alive"]:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            has_gpus = node["Resources"].get("GPU", 0) > 0
            actor = ray.remote(_OnNode).options(num_cpus=0, scheduling_strategy=here).remote(has_gpus)
            nodes.append(_Node(f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})", actor))
    nodes.sort(key=lambda node: node.name)
    try:
        answers = [node.actor.ready.remote() for node in nodes]
        there, _ = ray.wait(answers, num_returns=len(answers), timeout=_STEP_S)
        answering = [
            node for node, answer in zip(nodes, answers, strict=True) if answer in there and _succeeded(answer)
        ]
        yield answering, [node.name for node in nodes if node not in answering]
    finally:
        for node in nodes:
            ray.kill(node.actor)


def _succeeded(answer: ray.ObjectRef) -> bool:
    try:
        return ray.get(answer)
    except ray.exceptions.RayError:
        return False


def _ask(nodes: Sequence[_Node], method: str, *arguments: Any) -> dict[str, Any]:
    """Node -> what its actor answers, all asked at once.

    Raises:
        _Silent: after a step's time.
    """
    answers = {getattr(node.actor, method).remote(*arguments): node.name for node in nodes}
    _, waiting = ray.wait(list(answers), num_returns=len(answers), timeout=_STEP_S)
    if waiting:
        raise _Silent([answers[answer] for answer in waiting])
    return dict(zip(answers.values(), ray.get(list(answers)), strict=True))


def _check_versions(nodes: Sequence[_Node]) -> Iterator[Finding]:
    said = _ask(nodes, "environment")
    here = environment()
    different = False
    for level, names in (("error", _SAME), ("warning", _BETTER_SAME)):
        for name in names:
            by_version: dict[str, list[str]] = {str(here[name]): ["this process"]}
            for node, there in said.items():
                by_version.setdefault(str(there[name]), []).append(node)
            if len(by_version) > 1:
                different = True
                found = "; ".join(f"{version} on {some(where)}" for version, where in by_version.items())
                remedy = "install the same on every node: the image, or the environment, of the node that differs"
                yield Finding(level, "versions", f"{name} differs: {found}", remedy, details=by_version)
    if not different:
        versions = ", ".join(f"{name} {here[name]}" for name in _SAME[:4])
        yield Finding("ok", "versions", f"the same on {len(said)} nodes: {versions}", details={"everywhere": here})
    yield from _check_gpus(nodes, said)
    skews = {}
    for node in nodes:
        before = time.time()
        there = _ask([node], "time")[node.name]
        skews[node.name] = there - (before + time.time()) / 2
    worst = max(skews, key=lambda name: abs(skews[name]))
    found = f"at most {abs(skews[worst]):.3f} s apart ({worst})"
    apart = abs(skews[worst]) > _SKEW_S
    remedy = (
        "let NTP run there: of two attempts at a block the newer wins, and curves are drawn over time" if apart else ""
    )
    yield Finding("warning" if apart else "info", "clocks", found, remedy, details=skews)


def _check_gpus(nodes: Sequence[_Node], said: dict[str, Any]) -> Iterator[Finding]:
    promised = [node for node in nodes if said[node.name]["ray_has_gpus"]]
    if not promised:
        return
    seen = {node.name: said[node.name]["gpus"] for node in promised}
    if blind := [name for name, gpus in seen.items() if not gpus]:
        remedy = "is the driver installed there, torch built with CUDA, and the container started with its GPUs?"
        yield Finding("error", "GPUs", f"Ray counts GPUs on {some(blind)}, torch sees none there", remedy, details=seen)
    else:
        kinds = sorted({gpu for gpus in seen.values() for gpu in gpus})
        yield Finding("ok", "GPUs", f"torch sees them on {len(seen)} nodes: {', '.join(kinds)}", details=seen)


def _check_storage(nodes: Sequence[_Node], storage: Path) -> Iterator[Finding]:
    folder = storage / ".preflight" / uuid.uuid4().hex
    me = "this process"
    try:
        _write(folder, me)
        refused = {name: error for name, error in _ask(nodes, "write", folder).items() if error}
        if refused:
            name, error = next(iter(refused.items()))
            found = f"{some(refused)} cannot write to {display_path(storage)} ({name}: {error})"
            yield Finding(
                "error", "shared storage", found, "mount it there, writable for the user of Ray", details=refused
            )
        wrote = [me, *(node.name for node in nodes if node.name not in refused)]
        missing = {name: unseen for name, unseen in _ask(nodes, "read", folder, wrote).items() if unseen}
        if unseen := _unseen(folder, wrote):
            missing[me] = unseen
        # A node apart misses what the others wrote, and the others miss what it wrote.
        apart = sorted({name for name, unseen in missing.items() if me in unseen} | set(missing.get(me, ())))
        if apart:
            found = (
                f"{some(apart)} "
                f"and this process do not see each other's files in {display_path(storage)}: it is two storages"
            )
            remedy = "mount the same shared file system at this path on every node, or set storage.path to one"
            yield Finding("error", "shared storage", found, remedy, details=missing)
        elif missing:
            found = f"what some nodes wrote into {display_path(storage)} was not seen after {_SEEN_S:g} s by {some(missing)}"
            yield Finding("error", "shared storage", found, "is it mounted alike everywhere?", details=missing)
        elif not refused:
            found = f"{display_path(storage)} is written and read by {len(nodes)} nodes, each what the others wrote"
            yield Finding("ok", "shared storage", found)
    except OSError as error:
        yield Finding(
            "error",
            "shared storage",
            f"{display_path(storage)} cannot be written here ({error})",
            "mount it, or set storage.path",
        )
    finally:
        with suppress(ray.exceptions.RayError, _Silent):
            _ask(nodes, "remove", folder)
        _remove(folder)


def _check_connections(nodes: Sequence[_Node]) -> Iterator[Finding]:
    places = _ask(nodes, "listen")
    failed = {name: unreached for name, unreached in _ask(nodes, "connect", places).items() if unreached}
    if not failed:
        found = f"each of {len(nodes)} nodes reaches every other at a port of its choice"
        yield Finding("ok", "connections", found, details=places)
        return
    pairs = [f"{name} does not reach {some(unreached)}" for name, unreached in failed.items()]
    yield Finding(
        "error",
        "connections",
        f"{'; '.join(pairs[:3])} (tried for {_CONNECT_S:g} s): training would wait for nothing",
        "open all TCP ports from 1024 to 65535 between the nodes, or take nodes of one network; where a node has several, "
        "name that which the others reach in NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME on every node",
        details=failed,
    )
