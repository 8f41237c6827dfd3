"""Address of the dashboard of a cluster, to which jobs are sent."""

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from waver.tools.errors import WaverError

DASHBOARD_PORT = 8265


class AddressError(WaverError):
    """No address is given, or it cannot be that of a dashboard."""


def dashboard_address(option: str | None, environ: Mapping[str, str]) -> str:
    """Returns the address of the dashboard, without a trailing slash.

    Args:
        option: value of --address. If it is None or empty, RAY_API_SERVER_ADDRESS is used, or RAY_ADDRESS if it is http(s).
        environ: environment variables.

    Raises:
        AddressError: if no address is given, or it cannot be that of a dashboard.
    """
    example = f"http://HEAD:{DASHBOARD_PORT}"
    ray_address = environ.get("RAY_ADDRESS", "")
    address = option or environ.get("RAY_API_SERVER_ADDRESS")
    if not address and ray_address.startswith("http"):
        address = ray_address
    if not address:
        also = f" (RAY_ADDRESS={ray_address} is not the address of a dashboard)" if ray_address else ""
        raise AddressError(
            f"--address is missing{also}: give the address of the cluster's dashboard, as in --address {example}, or set "
            "RAY_API_SERVER_ADDRESS to it"
        )
    if "://" not in address:
        host = address.partition(":")[0]
        raise AddressError(
            f"--address {address}: the address of a dashboard begins with http:// or https://, as in "
            f"http://{host}:{DASHBOARD_PORT}"
        )
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise AddressError(f"--address {address}: {error}; write it as in {example}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise AddressError(
            f"--address {address}: the address of a dashboard begins with http:// or https://, as in "
            f"http://{host or 'HEAD'}:{DASHBOARD_PORT}"
        )
    if parts.password:
        raise AddressError(
            "--address contains a password, which would be printed: remove it, and give Ray's token with RAY_AUTH_TOKEN_PATH"
        )
    return address.rstrip("/")


def is_loopback(address: str) -> bool:
    """Returns whether an address is on this machine: a dashboard here, or the local end of a tunnel."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
