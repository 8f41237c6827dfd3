"""`waver submit`: sends a job to a cluster through its dashboard, follows it, and ends as it ended."""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from waver.on_ray.cluster.ray_internals import max_package_bytes, silence_job_client, visit_package
from waver.on_ray.jobs import (
    DASHBOARD_PORT,
    STOP_WAIT_S,
    Submission,
    SubmissionError,
    check_package,
    is_loopback,
    package_size,
)
from waver.tools.environment import environment_variables
from waver.tools.errors import WaverError

logger = logging.getLogger(__name__)

_CONNECT_S = 10.0
_POLL_S = 1.0
_LOST_S = 60.0
_OVERRULES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Ray's client takes an address from these, whatever address it is given."""
_STOPPED, _NO_PYTHON = 128 + 15, 127


class JobError(WaverError):
    """The cluster does not take the job, or nobody can tell what became of it."""


def send_job(submission: Submission, address: str) -> str:
    """Uploads the folder of a job and starts it. Returns the job's id.

    Args:
        submission: the job.
        address: of the dashboard.

    Raises:
        SubmissionError: where a file that the job needs would not be uploaded.
        PackageError: where the folder is too large.
        JobError: where nobody answers at the address, the token is refused, or a running job writes the same folder.
    """
    files = uploaded_files(submission.working_dir, submission.excludes)
    if missing := [path for path in submission.needs if path not in files]:
        raise SubmissionError(
            f"{', '.join(missing)} would not be uploaded: it is not in {submission.working_dir}, or .gitignore, .rayignore "
            "or --exclude leaves it out"
        )
    check_package(submission.working_dir, files, max_package_bytes())
    with _client(address) as client:
        if (folder := submission.metadata.get("waver.folder")) and (other := _writer(client, folder)):
            raise JobError(
                f"job {other} writes {folder}, and two writers would spoil it: wait for it, end it with "
                f"`ray job stop {other} --address {address}`, or choose another name (--set name=...)"
            )
        job_id = client.submit_job(
            entrypoint=submission.entrypoint,
            runtime_env={
                "working_dir": str(submission.working_dir),
                "excludes": list(submission.excludes),
                "env_vars": submission.environment,
            },
            metadata=submission.metadata,
        )
    logger.info(f"job {job_id}: {submission.entrypoint}")
    logger.info(f"  uploaded   {package_size(files) / 2**20:.1f} MiB of {submission.working_dir}")
    logger.info(f"  dashboard  {address}/#/jobs/{job_id}")
    if submission.runs:
        logger.info(
            f"  curves     waver board {submission.runs}    (where that folder is seen, once training has begun)"
        )
    logger.info(f"  stop       ray job stop {job_id} --address {address}    (gives it {STOP_WAIT_S} s to end in order)")
    return job_id


def follow_job(job_id: str, address: str, *, write: Callable[[str], object]) -> int:
    """Shows what a job prints until it ends. Returns the exit status: that of the job, 143 if it was stopped.

    Args:
        job_id: of the job.
        address: of the dashboard.
        write: is given what the job prints, as it comes.

    Raises:
        JobError: where the dashboard is lost.
        KeyboardInterrupt: after Ctrl-C, which leaves the job alone, saying so.
    """
    try:
        with _client(address) as client:
            job = _follow(client, job_id, write)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"no longer looking; job {job_id} goes on. Look again: ray job logs {job_id} --follow --address {address}    "
            f"end it: ray job stop {job_id} --address {address}"
        ) from None
    if job.status == JobStatus.SUCCEEDED:
        logger.info(f"job {job_id} succeeded")
        return 0
    if job.status == JobStatus.STOPPED:
        logger.info(f"job {job_id} was stopped; submit it again to go on from what is kept")
        return _STOPPED
    status = job.driver_exit_code
    if status is None:  # its command was never started, or the process that looked after it was lost
        logger.info(f"job {job_id} failed: {(job.message or 'without a word').strip().splitlines()[0]}")
        return 1
    logger.info(f"job {job_id} failed with exit status {status}")
    if status == _NO_PYTHON:
        logger.info(
            "  the head of the cluster finds no `python`: start Ray there from the environment in which waver is installed"
        )
    return 128 - status if status < 0 else status


def uploaded_files(folder: Path, excludes: tuple[str, ...]) -> dict[str, int]:
    """What Ray would upload of a folder: path within it -> bytes. Nothing is read but .gitignore and .rayignore."""
    found: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path.stat().st_size

    errors_only = logging.getLogger(f"{__name__}.upload")
    errors_only.setLevel(logging.ERROR)
    visit_package(folder, excludes, note, errors_only)
    return found


@contextlib.contextmanager
def _client(address: str) -> Iterator[JobSubmissionClient]:
    """Ray's client for one address; what goes wrong with it, here or in the body, is said in a sentence."""
    silence_job_client()
    _check_reachable(address)
    with environment_variables(_client_environment(address)):
        try:
            client = JobSubmissionClient(address)
        except AuthenticationError as error:
            raise JobError(_refused(address)) from error
        except (ConnectionError, requests.exceptions.RequestException, RuntimeError, ValueError) as error:
            scheme = ", or it is http://" if address.startswith("https") else ", or it is https://"
            raise JobError(
                f"what answers at {address} is not the dashboard of a Ray cluster{scheme}: it is at "
                f"http://HEAD:{DASHBOARD_PORT}, or where --dashboard-port of `ray start` says"
            ) from error
        try:
            yield client
        except (AuthenticationError, requests.exceptions.RequestException, RuntimeError) as error:
            hint = (
                "; if this lasts, another Ray on the head's machine holds the port of its agent: start it with "
                "--dashboard-agent-listen-port=0"
            )
            what = str(error).strip().splitlines()[-1]
            raise JobError(
                f"the cluster at {address} does not do as asked: {what}{hint if 'agent' in what else ''}"
            ) from error


def _client_environment(address: str) -> dict[str, str | None]:
    """Variables for Ray's client: none that names another cluster, no proxy for an address of this machine."""
    values: dict[str, str | None] = dict.fromkeys(_OVERRULES)
    if is_loopback(address):
        for name in ("NO_PROXY", "no_proxy"):
            values[name] = ",".join(filter(None, [os.environ.get(name), urlsplit(address).hostname]))
    return values


def _check_reachable(address: str) -> None:
    """Ray itself would wait for minutes where nothing answers."""
    parts = urlsplit(address)
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    try:
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_S).close()
    except OSError as error:
        guess = (
            "" if parts.port else f" The address has no port, which means {port}; the dashboard's is {DASHBOARD_PORT}."
        )
        raise JobError(
            f"nobody answers at {address} ({error}).{guess} Is the cluster up, and does its dashboard listen beyond its own "
            "machine? If not, make a tunnel to it (`ssh -L`, `kubectl port-forward`, `ray dashboard`) and name its local end"
        ) from error


def _refused(address: str) -> str:
    """What to do about a cluster that wants a token. Never says what the token is."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return (
            f"the cluster at {address} wants a token and was sent none: set RAY_AUTH_MODE=token, and put the cluster's "
            "token into ~/.ray/auth_token, or into a file that RAY_AUTH_TOKEN_PATH names"
        )
    return (
        f"the cluster at {address} refuses the token, or was sent none: that of the cluster belongs into RAY_AUTH_TOKEN, "
        "else into the file that RAY_AUTH_TOKEN_PATH names, else into ~/.ray/auth_token"
    )


def _writer(client: JobSubmissionClient, folder: str) -> str | None:
    """Id of a job that has not ended and writes a folder."""
    for job in client.list_jobs():
        if not job.status.is_terminal() and (job.metadata or {}).get("waver.folder") == folder:
            return job.submission_id or job.job_id
    return None


def _follow(client: JobSubmissionClient, job_id: str, write: Callable[[str], object]) -> JobDetails:
    shown, silent_since = 0, None

    def show(text: str) -> None:
        nonlocal shown
        shown += len(text)
        write(text)

    while True:
        try:
            whole = asyncio.run(_show_logs(client, job_id, shown, show))
            job = client.get_job_info(job_id)
            if job.status.is_terminal():
                if not whole:
                    show(client.get_job_logs(job_id)[shown:])
                return job
            silent_since = None
        except (OSError, RuntimeError) as error:  # those of requests are OSErrors
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > _LOST_S:
                raise JobError(
                    f"the dashboard at {client.get_address()} has not answered for {_LOST_S:g} s ({error}); job {job_id} "
                    f"may go on without it: ray job status {job_id} --address {client.get_address()}"
                ) from error
        time.sleep(_POLL_S)


async def _show_logs(client: JobSubmissionClient, job_id: str, skip: int, show: Callable[[str], None]) -> bool:
    """Shows what a job prints, but for so many characters that were shown before; False where the line broke.

    One that is silent for long counts as broken: of a machine that was lost nobody says so, and a new line will tell.
    """
    pieces = aiter(client.tail_job_logs(job_id))
    try:
        while True:
            text = await asyncio.wait_for(anext(pieces), _LOST_S)
            if text[skip:]:
                show(text[skip:])
            skip = max(0, skip - len(text))
    except StopAsyncIteration:
        return True
    except (RuntimeError, aiohttp.ClientError, OSError, asyncio.TimeoutError):
        return False
