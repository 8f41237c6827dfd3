"""The only module that imports Ray's private API. Each function says why the public API does not suffice.

A new version of Ray may break any of these without notice, so pyproject.toml bounds Ray by the versions that were tested.
Everything is imported where it is used, so that a change in Ray breaks the command that needs it and no other.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from waver.tools.environment import environment_variables

if TYPE_CHECKING:
    from ray.tune import Tuner


def free_resources_by_node() -> dict[str, dict[str, float]]:
    """Returns the resources that nothing uses: node id -> resource -> amount.

    `ray.available_resources` gives only the sum over all nodes, and a worker must fit on one node. `ray.util.state` needs a
    running dashboard and reports totals.
    """
    from ray._private.state import available_resources_per_node

    return available_resources_per_node()


def draining_node_ids() -> set[str]:
    """Returns the ids of the nodes that are being drained, as before a preemption.

    They are alive in `ray.nodes()`, which does not show that Ray places nothing on them any more.
    """
    from ray._private.state import state

    return set(state.get_draining_nodes())


_NODE_S = 10.0
"""How long to wait for the node of this machine, which may have just been started."""
_STATE_S = 5.0


def find_head(address: str) -> str:
    """Returns `host:port` of the head that `ray.init` would join; `auto` stands for a cluster with a node on this machine.

    `ray.init` resolves the address itself, and then tries for minutes to connect to it.

    Raises:
        ConnectionError, ValueError: if the address leads to no head.
    """
    from ray._private.services import canonicalize_bootstrap_address_or_die

    return canonicalize_bootstrap_address_or_die(address)


def check_cluster_state(head: str) -> None:
    """Raises the error of Ray if the server at `host:port` does not know the nodes of a cluster, in seconds.

    The public API asks only after it has joined the cluster, with time limits of minutes.
    """
    from ray._raylet import GcsClient

    GcsClient(address=head).get_all_node_info(timeout=_STATE_S)


def check_local_node(head: str) -> None:
    """Raises RuntimeError if no node of the cluster runs on this machine.

    The public API, `ray.init`, would wait for one for a minute.
    """
    from ray._private.services import get_node_to_connect_for_driver
    from ray._raylet import GcsClient

    get_node_to_connect_for_driver(GcsClient(address=head), timeout_seconds=_NODE_S)


@contextmanager
def single_node_cluster() -> Iterator[None]:
    """Makes a Ray that is started within the body use the loopback interface only.

    `ray.init` has no parameter for this. RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, made for the firewall of macOS, has this
    effect on every system. Ray reads the variable when it is imported, and this process has imported Ray already.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    with environment_variables({ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):  # for the processes that Ray starts
        ray_constants.ENABLE_RAY_CLUSTER = False
        try:
            yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = before


def renew_tuner(tuner: "Tuner", *, callbacks: Sequence[Any], max_failures: int, max_concurrent: int | None) -> None:
    """Gives a restored tuner settings that may have changed since it began.

    `Tuner.restore` takes none of them, and the tuner has no other public way to change them.
    """
    internal: Any = tuner._local_tuner
    internal._run_config.callbacks = list(callbacks)
    internal._run_config.failure_config.max_failures = max_failures
    internal._tune_config.max_concurrent_trials = max_concurrent


def reload_authentication() -> None:
    """Makes Ray read RAY_AUTH_MODE and the token again.

    Ray caches both in the process when it first connects, and has no public way to drop them.
    """
    from ray import _raylet

    _raylet.Config.initialize("")
    _raylet.AuthenticationTokenLoader.instance().reset_cache()


def worker_group_timeout_error() -> type[Exception]:
    """Returns Ray Train's error for a group of workers that could not be placed in time.

    `ray.train` exports only TrainingFailedError, which wraps this one; its message may change with any version.
    """
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return WorkerGroupStartupTimeoutError


def worker_group_startup_error() -> type[Exception]:
    """Returns Ray Train's error for a group that lost a worker while it started.

    `ray.train` does not export it either, see `worker_group_timeout_error`.
    """
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

    return WorkerGroupStartupFailedError


def max_package_bytes() -> int:
    """Returns the size from which Ray refuses to upload the folder of a job.

    No public constant has the limit, which waver checks before it packs and sends anything.
    """
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE

    return DASHBOARD_CLIENT_MAX_SIZE


def visit_package(folder: Path, excludes: Sequence[str], visit: Callable[[Path], None], logger: logging.Logger) -> None:
    """Calls `visit` for each path in the folder of a job that Ray would upload, in Ray's own walk.

    The public client has no dry run. A walk of our own could differ from Ray's in what .gitignore, .rayignore and the
    excludes leave out, and then the size that is checked would not be the size that is sent.

    Args:
        folder: working directory of the job.
        excludes: patterns, as in .gitignore.
        visit: called with files and folders.
        logger: receives Ray's notices.
    """
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    patterns = [*get_runtime_env_default_excludes(), *excludes]
    use_gitignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    _dir_travel(folder, [_get_excludes(folder, patterns)], visit, include_gitignore=use_gitignore, logger=logger)


def silence_job_client() -> None:
    """Keeps Ray's job client from logging anything but errors.

    The client has no option for this. Its errors are exceptions, which waver shows in its own words.
    """
    for name in (
        "ray.dashboard.modules.dashboard_sdk",
        "ray.dashboard.modules.job.sdk",
        "ray._private.runtime_env",
        "ray._private.authentication.http_token_authentication",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
