"""Where jobs are sent: the dashboard of a cluster."""

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from waver.tools.errors import WaverError

DASHBOARD_PORT = 8265


class AddressError(WaverError):
    """It is not the address of a dashboard."""


def dashboard_address(asked: str | None, environ: Mapping[str, str]) -> str:
    """Where jobs are sent: what was asked, else RAY_API_SERVER_ADDRESS, else RAY_ADDRESS where that is http(s).

    Raises:
        AddressError: where it is none, or cannot be the address of a dashboard.
    """
    example = f"http://HEAD:{DASHBOARD_PORT}"
    joined = environ.get("RAY_ADDRESS", "")
    address = asked or environ.get("RAY_API_SERVER_ADDRESS") or (joined if joined.startswith("http") else "")
    if not address:
        also = f" (RAY_ADDRESS={joined} is not that of the dashboard)" if joined else ""
        raise AddressError(
            f"--address is missing{also}: jobs are sent to the dashboard of the cluster, as in --address {example}; or set "
            "RAY_API_SERVER_ADDRESS to it"
        )
    if "://" not in address:
        host = address.partition(":")[0]
        raise AddressError(
            f"--address {address}: write the address of the dashboard with http:// or https://, as in "
            f"http://{host}:{DASHBOARD_PORT}"
        )
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise AddressError(f"--address {address}: {error}; write it as in {example}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise AddressError(
            f"--address {address}: jobs are sent to the dashboard, over http:// or https://, as in "
            f"http://{host or 'HEAD'}:{DASHBOARD_PORT}"
        )
    if parts.password:
        raise AddressError("--address has a password in it, which would be printed: Ray's token goes another way")
    return address.rstrip("/")


def is_loopback(address: str) -> bool:
    """Whether an address is of this machine itself (or a tunnel that begins here)."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
