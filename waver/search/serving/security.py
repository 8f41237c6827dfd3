"""Decides which requests the server answers, and what the page may do in the browser.

On the loopback interface there is usually no token. The danger is then a page of another site in the user's browser. The
Host header reveals a page whose name was rebound to 127.0.0.1 (DNS rebinding). The Origin header reveals a page that sends a
form (CSRF). On other interfaces every request needs a token. The browser receives it once, in the URL, and keeps it in a
cookie.
"""

import hmac
import ipaddress
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import PlainTextResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from waver.search.index import SearchError

_MIN_TOKEN = 16
_TOKEN_BYTES = 24
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the first URL may have the token
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Access:
    """Where the server listens, and what it requires."""

    host: str
    port: int
    token: str | None
    """None if no token is required."""

    @property
    def url(self) -> str:
        """Address of the page, with the token."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/{f'?token={self.token}' if self.token else ''}"

    @property
    def cookie(self) -> str:
        """Name of the cookie. It has the port, since browsers send cookies to all ports of a host."""
        return f"waver_token_{self.port}"


def choose_token(host: str) -> str | None:
    """Returns the token that a server on an interface requires: WAVER_TOKEN, or else a random one if it is not loopback.

    Raises:
        SearchError: if WAVER_TOKEN is too short, or has characters that a URL cannot have.
    """
    given = os.environ.get("WAVER_TOKEN")
    if given:
        if len(given) < _MIN_TOKEN or not (given.isascii() and given.replace("-", "").replace("_", "").isalnum()):
            raise SearchError(
                f"WAVER_TOKEN is too short, or has other characters than letters, digits, - and _: set it to {_MIN_TOKEN} "
                "or more of them, or unset it to get a random token"
            )
        return given
    return None if is_loopback(host) else secrets.token_urlsafe(_TOKEN_BYTES)


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach a host name or address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def refusal(access: Access, method: str, headers: Mapping[str, str], tokens: tuple[str, ...]) -> tuple[int, str] | None:
    """Returns the status and the sentence that refuse a request; None if it is allowed.

    Args:
        access: what the server requires.
        method: method of the request, in capitals.
        headers: headers of the request; their names are in small letters.
        tokens: tokens in the URL and in the cookie of the request.
    """
    host = headers.get("host", "")
    if is_loopback(access.host) and not is_loopback(_name_of(host)):
        return 403, "This server answers only to localhost and 127.0.0.1, not to other names of this machine."
    if access.token and not any(hmac.compare_digest(token.encode(), access.token.encode()) for token in tokens):
        return 401, "A token is missing or wrong: open the address that `waver serve` printed."
    if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
        return 403, "Another site may not use this server."
    if method in ("GET", "HEAD"):
        return None
    if (origin := headers.get("origin")) is not None and urlsplit(origin).netloc != host:
        return 403, "Another site may not use this server."
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return 415, "Send JSON, with Content-Type: application/json."
    return None


def _name_of(host: str) -> str:
    """Returns the name in a Host header, without the port; empty if there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class Guard:
    """ASGI middleware that refuses requests by `refusal`, and adds security headers to every response."""

    def __init__(self, app: ASGIApp, access: Access):
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses a request, or passes it on to the application."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        given = request.query_params.get("token")
        tokens = tuple(token for token in (given, request.cookies.get(self._access.cookie)) if token)
        refused = refusal(self._access, request.method, request.headers, tokens)
        keeps = refused is None and given is not None and self._access.token is not None

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
                if keeps:
                    cookie = f"{self._access.cookie}={self._access.token}; Path=/; HttpOnly; SameSite=Strict"
                    headers.append("Set-Cookie", cookie)
            await send(message)

        app = self._app if refused is None else PlainTextResponse(f"{refused[1]}\n", refused[0])
        await app(scope, receive, send_guarded)
