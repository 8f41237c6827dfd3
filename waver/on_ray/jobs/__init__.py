"""What is sent to a cluster as a job, and where to; all of it is checked before anything is sent.

A job runs in a copy of a folder, at another path and on another machine, and the copy is deleted when the job ends. So what
names a file of this machine, or a place in the copy, is found here.
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
