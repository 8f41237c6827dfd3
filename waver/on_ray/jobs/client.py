"""Submits a job through the dashboard of a cluster, prints its output, and returns its exit status (`waver submit`)."""

import asyncio
import contextlib
import logging
import os
import shlex
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
from waver.tools.network import call_within

logger = logging.getLogger(__name__)

_CONNECT_S = 10.0
_POLL_S = 1.0
_SILENCE_LIMIT_S = 60.0
"""How long a dashboard may fail to answer, or a stream of logs may be silent, before it counts as lost."""
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Ray's client prefers these variables to the address that it is given."""
_EXIT_STOPPED, _EXIT_NO_COMMAND = 128 + 15, 127
"""Exit status of a job that was stopped (SIGTERM), and of a shell that does not find a command."""


class JobError(WaverError):
    """The cluster does not accept the job, or its dashboard no longer answers."""


def send_job(submission: Submission, address: str) -> str:
    """Uploads the working directory of a job and starts the job.

    Args:
        submission: the job.
        address: address of the dashboard.

    Returns:
        The id of the job.

    Raises:
        SubmissionError: if a file that the job needs would not be uploaded.
        PackageError: if the working directory is too large.
        JobError: if no dashboard answers at the address, it refuses the token, or a running job writes to the same folder.
    """
    files = uploaded_files(submission.working_dir, submission.excludes)
    if missing := [path for path in submission.needs if path not in files]:
        raise SubmissionError(
            f"{', '.join(missing)} would not be uploaded, but the job needs it: it is not in {submission.working_dir}, or "
            ".gitignore, .rayignore or --exclude excludes it"
        )
    check_package(submission.working_dir, files, max_package_bytes())
    with _client(address) as client:
        if (folder := submission.metadata.get("waver.folder")) and (other := _job_writing_to(client, folder)):
            raise JobError(
                f"job {other} writes {folder}, and a second writer would corrupt it: wait until that job ends, stop it with "
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
        board = f"waver board {shlex.quote(submission.runs)}"
        logger.info(f"  metrics    {board}    (on a machine with that folder, once training has begun)")
    logger.info(
        f"  stop       ray job stop {job_id} --address {address}    (it has {STOP_WAIT_S} s to save a checkpoint)"
    )
    return job_id


def follow_job(job_id: str, address: str, *, write: Callable[[str], object]) -> int:
    """Passes on the output of a job until the job ends.

    Args:
        job_id: id of the job.
        address: address of the dashboard.
        write: called with each new piece of the output.

    Returns:
        The exit status of the job; 143 if it was stopped.

    Raises:
        JobError: if the dashboard no longer answers.
        KeyboardInterrupt: on Ctrl-C, which does not end the job; the message says how to follow or stop it.
    """
    try:
        with _client(address) as client:
            job = _follow(client, job_id, write)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"no longer following; job {job_id} goes on. Follow it: ray job logs {job_id} --follow --address {address}    "
            f"stop it: ray job stop {job_id} --address {address}"
        ) from None
    if job.status == JobStatus.SUCCEEDED:
        logger.info(f"job {job_id} succeeded")
        return 0
    if job.status == JobStatus.STOPPED:
        logger.info(f"job {job_id} was stopped; submit it again to resume from its newest checkpoint")
        return _EXIT_STOPPED
    status = job.driver_exit_code
    if status is None:  # its command did not start, or Ray lost the process that supervised it
        logger.info(f"job {job_id} failed: {(job.message or 'no reason is known').strip().splitlines()[0]}")
        return 1
    logger.info(f"job {job_id} failed with exit status {status}")
    if status == _EXIT_NO_COMMAND:
        logger.info(
            "  the head of the cluster has no `python`: start Ray there in the environment in which waver is installed"
        )
    return 128 - status if status < 0 else status


def uploaded_files(folder: Path, excludes: tuple[str, ...]) -> dict[str, int]:
    """Returns the files of a folder that Ray would upload: path within the folder -> bytes."""
    found: dict[str, int] = {}

    def add(path: Path) -> None:
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path.stat().st_size

    errors_only = logging.getLogger(f"{__name__}.upload")
    errors_only.setLevel(logging.ERROR)
    visit_package(folder, excludes, add, errors_only)
    return found


@contextlib.contextmanager
def _client(address: str) -> Iterator[JobSubmissionClient]:
    """Yields Ray's client for an address. Raises a JobError for its errors, here or in the body."""
    silence_job_client()
    _check_reachable(address)
    with environment_variables(_client_environment(address)):
        _check_answers(address)
        try:
            client = JobSubmissionClient(address)
        except AuthenticationError as error:
            raise JobError(_token_message(address)) from error
        except (ConnectionError, requests.exceptions.RequestException, RuntimeError, ValueError) as error:
            scheme = ", or it is http://" if address.startswith("https") else ", or it is https://"
            raise JobError(
                f"what answers at {address} is not the dashboard of a Ray cluster{scheme}: the dashboard is at "
                f"http://HEAD:{DASHBOARD_PORT} unless `ray start` was given another --dashboard-port"
            ) from error
        try:
            yield client
        except (AuthenticationError, requests.exceptions.RequestException, RuntimeError) as error:
            hint = (
                "; if this persists, another Ray on the head's machine uses the port of the dashboard agent: start the "
                "head with --dashboard-agent-listen-port=0"
            )
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise JobError(
                f"the cluster at {address} refused the request, or the connection broke: {reason}"
                f"{hint if 'agent' in reason else ''}"
            ) from error


def _client_environment(address: str) -> dict[str, str | None]:
    """Returns changes of the environment for Ray's client: no other address, and no proxy for this machine."""
    values: dict[str, str | None] = dict.fromkeys(_ADDRESS_VARIABLES)
    if is_loopback(address):
        for name in ("NO_PROXY", "no_proxy"):
            values[name] = ",".join(filter(None, [os.environ.get(name), urlsplit(address).hostname]))
    return values


def _check_answers(address: str) -> None:
    """Raises a JobError if what listens at an address says nothing. Ray's client itself would wait for ever."""
    try:
        requests.get(address, timeout=_CONNECT_S, stream=True).close()
    except requests.exceptions.Timeout as error:
        raise JobError(
            f"what listens at {address} says nothing within {_CONNECT_S:g} s, so it is not the dashboard of a Ray cluster, "
            f"or its machine hangs: the dashboard is at http://HEAD:{DASHBOARD_PORT} unless `ray start` was given another "
            "--dashboard-port"
        ) from error
    except requests.exceptions.RequestException:  # it answers in some way, of which Ray's client will say more
        return


def _check_reachable(address: str) -> None:
    """Raises a JobError if nothing answers at an address. Ray itself would wait for minutes."""
    parts = urlsplit(address)
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    try:
        call_within(_CONNECT_S, socket.create_connection, (parts.hostname, port), _CONNECT_S).close()
    except OSError as error:
        guess = (
            ""
            if parts.port
            else f" The address has no port, which means {port}; the default port of the dashboard is {DASHBOARD_PORT}."
        )
        raise JobError(
            f"nothing answers at {address} ({error}).{guess} Check that the cluster is up. If its dashboard listens on "
            "localhost only, open a tunnel (`ssh -L`, `kubectl port-forward`, `ray dashboard`) and give its local address"
        ) from error


def _token_message(address: str) -> str:
    """Returns the message for a cluster that requires a token. It never contains the token."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return (
            f"the cluster at {address} wants a token and was sent none: set RAY_AUTH_MODE=token, and put the cluster's "
            "token into ~/.ray/auth_token or into the file that RAY_AUTH_TOKEN_PATH names"
        )
    return (
        f"the cluster at {address} refuses the token, or was sent none. Ray reads the token from RAY_AUTH_TOKEN, else from "
        "the file that RAY_AUTH_TOKEN_PATH names, else from ~/.ray/auth_token: put the token of this cluster there"
    )


def _job_writing_to(client: JobSubmissionClient, folder: str) -> str | None:
    """Returns the id of a job that has not ended and writes to a folder; None if there is none."""
    for job in client.list_jobs():
        if not job.status.is_terminal() and (job.metadata or {}).get("waver.folder") == folder:
            return job.submission_id or job.job_id
    return None


def _follow(client: JobSubmissionClient, job_id: str, write: Callable[[str], object]) -> JobDetails:
    """Passes on the output of a job until it ends, reconnecting when the stream breaks; returns how the job ended."""
    num_written, silent_since = 0, None

    def write_counted(text: str) -> None:
        nonlocal num_written
        num_written += len(text)
        write(text)

    while True:
        try:
            complete = asyncio.run(_stream_logs(client, job_id, num_written, write_counted))
            job = client.get_job_info(job_id)
            if job.status.is_terminal():
                if not complete:
                    write_counted(client.get_job_logs(job_id)[num_written:])
                return job
            silent_since = None
        except (OSError, RuntimeError) as error:  # the exceptions of requests are OSErrors
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > _SILENCE_LIMIT_S:
                raise JobError(
                    f"the dashboard at {client.get_address()} has not answered for {_SILENCE_LIMIT_S:g} s ({error}); job "
                    f"{job_id} may still be running: ray job status {job_id} --address {client.get_address()}"
                ) from error
        time.sleep(_POLL_S)


async def _stream_logs(client: JobSubmissionClient, job_id: str, skip: int, write: Callable[[str], None]) -> bool:
    """Streams the output of a job, from its beginning, and writes it without the first `skip` characters.

    A stream that is silent for long counts as broken: if the machine at the other end is lost, only a new connection fails.

    Returns:
        True if the stream came to its end, False if it broke.
    """
    pieces = aiter(client.tail_job_logs(job_id))
    try:
        while True:
            text = await asyncio.wait_for(anext(pieces), _SILENCE_LIMIT_S)
            if text[skip:]:
                write(text[skip:])
            skip = max(0, skip - len(text))
    except StopAsyncIteration:
        return True
    except (RuntimeError, aiohttp.ClientError, OSError, asyncio.TimeoutError):
        return False
