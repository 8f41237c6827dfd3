"""Errors that the user can resolve, and the report of a bug."""

import errno
import platform
from importlib.metadata import version


class WaverError(Exception):
    """Base class of all errors that the user can resolve: the message says what is wrong, where, and what to do.

    The command line prints the message alone. Any other exception is a defect of waver: it is printed with its traceback.
    """


_REFUSED_BY_THE_SYSTEM = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.EIO,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENFILE,
    errno.EADDRINUSE,
    errno.EADDRNOTAVAIL,
)


def user_message(error: BaseException) -> str | None:
    """Returns the message to print in place of a traceback, or None if the error is a bug.

    Args:
        error: a `WaverError`, or an `OSError` with which the operating system refused a request (no space, no permission,
            a port in use, ...).
    """
    if isinstance(error, WaverError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _REFUSED_BY_THE_SYSTEM:
        return str(error)
    return None


class RemoteTracebackError(Exception):
    """A bug in another process: the message is the traceback that this process formatted."""


def bug_report() -> str:
    """Returns the line that follows the traceback of a bug."""
    versions = f"waver {version('waver')}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return f"This is a bug in waver ({versions}). Please report it in waver's issue tracker, with the traceback above."
