"""Checks of the nodes of a cluster: same versions, synchronous clocks, visible GPUs, one shared storage, connections.

On each node runs an actor that takes no CPU, see `NodeActor`. Every step has a time limit.
"""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from waver.config import ExperimentConfig
from waver.doctor.findings import Finding
from waver.on_ray.doctor.node_actor import (
    CONNECT_TIMEOUT_S,
    VISIBLE_TIMEOUT_S,
    NodeActor,
    missing_probes,
    node_name,
    remove_probes,
    write_probe,
)
from waver.runs.environment import environment
from waver.tools.names import abbreviate
from waver.tools.object_store import display_path

_MUST_MATCH = ("python", "ray", "torch", "waver", "open_clip_torch", "git_commit")
"""Versions that must be equal on all nodes: different ones may crash, or give different metrics."""
_SHOULD_MATCH = ("numpy", "pyarrow", "av", "decord")
_STEP_TIMEOUT_S = 60.0
"""For all nodes together; in the first step each of them starts a process."""
_MAX_CLOCK_SKEW_S = 2.0
_THIS_PROCESS = "this process"


@dataclass(frozen=True)
class _Node:
    name: str
    actor: Any


def check_nodes(config: ExperimentConfig) -> Iterator[Finding]:
    """Checks versions, GPUs, clocks, shared storage and connections of every node of the connected cluster."""
    with _node_actors() as (nodes, silent):
        if silent:
            yield _silent_nodes(silent)
        if not nodes:
            return
        try:
            environments = _call(nodes, "environment")
            yield from _check_versions(environments)
            yield from _check_gpus(environments)
            yield _check_clocks(nodes)
            yield from _check_storage(nodes, config.storage.folder)
            yield _check_connections(nodes)
        except _NodesSilentError as error:
            yield _silent_nodes(error.names)


class _NodesSilentError(RuntimeError):
    """Nodes did not answer within the time limit of a step."""

    def __init__(self, names: list[str]):
        super().__init__(", ".join(names))
        self.names = names


def _silent_nodes(names: list[str]) -> Finding:
    remedy = "see `ray list nodes` and the logs of these nodes, or remove them from the cluster"
    return Finding(
        "error", "nodes", f"{abbreviate(names)} did not answer in {_STEP_TIMEOUT_S:g} s", remedy, details=names
    )


@contextmanager
def _node_actors() -> Iterator[tuple[list[_Node], list[str]]]:
    """Starts an actor on each node; yields the nodes whose actors answer, and the names of the other nodes."""
    nodes = []
    for node in ray.nodes():
        if node["Alive"]:
            on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            has_gpus = node["Resources"].get("GPU", 0) > 0
            actor = ray.remote(NodeActor).options(num_cpus=0, scheduling_strategy=on_node).remote(has_gpus)
            nodes.append(_Node(node_name(node["NodeManagerAddress"], node["NodeID"]), actor))
    nodes.sort(key=lambda node: node.name)
    try:
        answers = [node.actor.ready.remote() for node in nodes]
        done, _ = ray.wait(answers, num_returns=len(answers), timeout=_STEP_TIMEOUT_S)
        answering = [node for node, answer in zip(nodes, answers, strict=True) if answer in done and _succeeded(answer)]
        yield answering, [node.name for node in nodes if node not in answering]
    finally:
        for node in nodes:
            ray.kill(node.actor)


def _succeeded(answer: ray.ObjectRef) -> bool:
    try:
        return ray.get(answer)
    except ray.exceptions.RayError:
        return False


def _call(nodes: Sequence[_Node], method: str, *arguments: Any) -> dict[str, Any]:
    """Calls a method of all actors at once; returns node name -> result.

    Raises:
        _NodesSilentError: if a node does not answer within `_STEP_TIMEOUT_S`.
    """
    answers = {getattr(node.actor, method).remote(*arguments): node.name for node in nodes}
    _, pending = ray.wait(list(answers), num_returns=len(answers), timeout=_STEP_TIMEOUT_S)
    if pending:
        raise _NodesSilentError([answers[answer] for answer in pending])
    return dict(zip(answers.values(), ray.get(list(answers)), strict=True))


def _check_versions(environments: Mapping[str, dict[str, Any]]) -> Iterator[Finding]:
    here = environment()
    differ = False
    for level, names in (("error", _MUST_MATCH), ("warning", _SHOULD_MATCH)):
        for name in names:
            nodes_of_version: dict[str, list[str]] = {str(here[name]): [_THIS_PROCESS]}
            for node, its_environment in environments.items():
                nodes_of_version.setdefault(str(its_environment[name]), []).append(node)
            if len(nodes_of_version) > 1:
                differ = True
                found = "; ".join(f"{version} on {abbreviate(nodes)}" for version, nodes in nodes_of_version.items())
                remedy = "install the same version on every node, in its image or its Python environment"
                yield Finding(level, "versions", f"{name} differs: {found}", remedy, details=nodes_of_version)
    if not differ:
        versions = ", ".join(f"{name} {here[name]}" for name in _MUST_MATCH[:4])
        yield Finding(
            "ok", "versions", f"the same on {len(environments)} nodes: {versions}", details={"everywhere": here}
        )


def _check_gpus(environments: Mapping[str, dict[str, Any]]) -> Iterator[Finding]:
    gpus_of_node = {name: found["gpus"] for name, found in environments.items() if found["ray_has_gpus"]}
    if not gpus_of_node:
        return
    if blind := [name for name, gpus in gpus_of_node.items() if not gpus]:
        found = f"Ray counts GPUs on {abbreviate(blind)}, but torch sees no GPU on them"
        remedy = (
            "check the driver, whether torch is built with CUDA, and whether the container was started with its GPUs"
        )
        yield Finding("error", "GPUs", found, remedy, details=gpus_of_node)
    else:
        kinds = ", ".join(sorted({gpu for gpus in gpus_of_node.values() for gpu in gpus}))
        yield Finding("ok", "GPUs", f"torch sees them on {len(gpus_of_node)} nodes: {kinds}", details=gpus_of_node)


def _check_clocks(nodes: Sequence[_Node]) -> Finding:
    skews = {}
    for node in nodes:
        before = time.time()
        node_time = _call([node], "time")[node.name]
        skews[node.name] = node_time - (before + time.time()) / 2
    worst = max(skews, key=lambda name: abs(skews[name]))
    found = f"at most {abs(skews[worst]):.3f} s apart ({worst})"
    if abs(skews[worst]) <= _MAX_CLOCK_SKEW_S:
        return Finding("info", "clocks", found, details=skews)
    remedy = (
        "run NTP on that node: waver compares times of different nodes, to choose the newer of two blocks and in curves"
    )
    return Finding("warning", "clocks", found, remedy, details=skews)


def _check_storage(nodes: Sequence[_Node], storage: Path) -> Iterator[Finding]:
    """Checks that this process and every node see the probes that the others write below the storage."""
    folder = storage / ".preflight" / uuid.uuid4().hex
    try:
        write_probe(folder, _THIS_PROCESS)
        refused = {name: error for name, error in _call(nodes, "write", folder).items() if error}
        if refused:
            yield _unwritable_storage(storage, refused)
        writers = [_THIS_PROCESS, *(node.name for node in nodes if node.name not in refused)]
        missing = {name: unseen for name, unseen in _call(nodes, "find_missing", folder, writers).items() if unseen}
        if unseen := missing_probes(folder, writers):
            missing[_THIS_PROCESS] = unseen
        if missing:
            yield _separate_storages(storage, missing)
        elif not refused:
            found = f"{display_path(storage)} is shared: each of {len(nodes)} nodes sees the files of the others"
            yield Finding("ok", "shared storage", found)
    except OSError as error:
        found = f"{display_path(storage)} cannot be written here ({error})"
        yield Finding("error", "shared storage", found, "mount it, or set storage.path")
    finally:
        with suppress(ray.exceptions.RayError, _NodesSilentError):
            _call(nodes, "remove", folder)
        remove_probes(folder)


def _unwritable_storage(storage: Path, errors: dict[str, str]) -> Finding:
    name, error = next(iter(errors.items()))
    found = f"{abbreviate(errors)} cannot write to {display_path(storage)} ({name}: {error})"
    remedy = "mount it on these nodes, writable for the user that runs Ray"
    return Finding("error", "shared storage", found, remedy, details=errors)


def _separate_storages(storage: Path, missing: dict[str, list[str]]) -> Finding:
    """Returns the finding that nodes do not see the probes of others.

    Args:
        storage: the folder that should be shared.
        missing: node, or this process -> names of the writers whose probes it does not see.
    """
    # A node with another storage misses the probe of this process, and this process misses the node's.
    apart = sorted(
        {name for name, unseen in missing.items() if _THIS_PROCESS in unseen} | set(missing.get(_THIS_PROCESS, ()))
    )
    place = display_path(storage)
    if apart:
        found = f"{abbreviate(apart)} and this process do not see each other's files in {place}: it is not shared"
        remedy = "mount the same shared file system at this path on every node, or set storage.path to one"
    else:
        found = f"{abbreviate(missing)} did not see files of other nodes in {place} after {VISIBLE_TIMEOUT_S:g} s"
        remedy = "mount the shared file system with the same options on every node"
    return Finding("error", "shared storage", found, remedy, details=missing)


def _check_connections(nodes: Sequence[_Node]) -> Finding:
    addresses = _call(nodes, "listen")
    failed = {name: unreached for name, unreached in _call(nodes, "connect", addresses).items() if unreached}
    if not failed:
        found = f"each of {len(nodes)} nodes reaches every other at a random port"
        return Finding("ok", "connections", found, details=addresses)
    pairs = [f"{name} does not reach {abbreviate(unreached)}" for name, unreached in failed.items()]
    return Finding(
        "error",
        "connections",
        f"{'; '.join(pairs[:3])} (within {CONNECT_TIMEOUT_S:g} s): training would hang",
        "open all TCP ports from 1024 to 65535 between the nodes, or use nodes of one network; if a node has several "
        "networks, set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME on every node to the interface that the others reach",
        details=failed,
    )
