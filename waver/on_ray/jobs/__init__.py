"""Prepares a job for a cluster, and checks it before anything is sent.

A job runs in a copy of the working directory, on another machine and at another path, and Ray deletes the copy when the job
ends. So the checks find paths that exist only on this machine or inside the copy.
"""

from waver.on_ray.jobs.address import DASHBOARD_PORT, AddressError, dashboard_address, is_loopback
from waver.on_ray.jobs.package import PackageError, check_package, package_size
from waver.on_ray.jobs.submission import (
    STOP_WAIT_S,
    StageCommand,
    Submission,
    SubmissionError,
    default_working_dir,
    plan_submission,
)

__all__ = [
    "DASHBOARD_PORT",
    "STOP_WAIT_S",
    "AddressError",
    "PackageError",
    "StageCommand",
    "Submission",
    "SubmissionError",
    "check_package",
    "dashboard_address",
    "default_working_dir",
    "is_loopback",
    "package_size",
    "plan_submission",
]
