"""Starts a Ray as a command of waver does, runs two workers on it, and prints as JSON which processes listen where."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch.distributed
from rays import family

from waver.config import ResourcesConfig
from waver.on_ray.cluster.connection import connect
from waver.on_ray.cluster.signals import signal_actor
from waver.on_ray.cluster.workers import run_on_workers

_LISTENS = "0A"
_CLIENT = """
import sys
import ray
try:
    print(ray._raylet.GcsClient(address=sys.argv[1]).internal_kv_keys(b"", b"fun") is not None)
except Exception as error:
    print(type(error).__name__)
"""


def listening(pid: int) -> dict[str, str]:
    """Returns address -> process, for a process and its descendants that listen; addresses are hexadecimal as in /proc."""
    owners = {}
    for process in family(pid):
        try:
            name = Path(f"/proc/{process}/cmdline").read_text().partition("\0")[0]
            for file in Path(f"/proc/{process}/fd").iterdir():
                owners[str(file.readlink())] = name
        except OSError:
            continue
    rows = [row.split() for kind in ("tcp", "tcp6") for row in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    return {
        row[1]: owners[f"socket:[{row[9]}]"] for row in rows if row[3] == _LISTENS and f"socket:[{row[9]}]" in owners
    }


def work(driver: int) -> dict[str, str] | None:
    """Runs on each worker; the first returns what listens while all workers are in the process group."""
    gathered = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, torch.distributed.get_rank())
    assert gathered == [0, 1]
    listeners = listening(driver) if torch.distributed.get_rank() == 0 else None
    torch.distributed.barrier()
    return listeners


def main() -> None:
    before = dict(os.environ)
    with connect(num_cpus=3, dashboard=True), signal_actor() as actor:
        import ray

        token = os.environ["RAY_AUTH_TOKEN"]
        resources = ResourcesConfig(workers=2, cpus_per_worker=1, timeout_s=60)
        listeners = run_on_workers(work, os.getpid(), resources, signals=actor)
        address = ray.get_runtime_context().gcs_address
        answers = [
            subprocess.run(
                [sys.executable, "-c", _CLIENT, address],
                env=before | variables,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for variables in ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}, {"RAY_AUTH_MODE": "disabled"})
        ]
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        files_with_token = [
            str(path) for path in session.rglob("*") if path.is_file() and token in path.read_text(errors="replace")
        ]
    changed = {name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name)}
    report = {"listeners": listeners, "answers": answers, "files_with_token": files_with_token}
    print(json.dumps(report | {"changed": sorted(changed)}))


if __name__ == "__main__":
    main()
