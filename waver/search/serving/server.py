"""Serves the page until Ctrl-C or SIGTERM."""

import contextlib
import logging
import socket
import webbrowser
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from waver.search.index import SearchError
from waver.search.serving.app import Site, build_app
from waver.search.serving.judgements import Judgements
from waver.search.serving.searcher import Searcher
from waver.search.serving.security import Access, Guard, choose_token, is_loopback
from waver.search.serving.videos import Previews, SpanReader
from waver.tools.names import counted
from waver.tools.object_store import display_path
from waver.tools.termination import Terminated, sigterm_event

logger = logging.getLogger(__name__)

DEFAULT_PORT = 8080
_OTHER_PORTS = 20
"""Number of ports that are tried, the default one and those after it."""
_END_S = 2


def serve(
    folders: Sequence[Path], *, host: str, port: int | None, judgements: Path | None, open_browser: bool = False
) -> None:
    """Serves the page that searches one index, or two side by side, until Ctrl-C or SIGTERM.

    Args:
        folders: folders of the indexes.
        host: name or address of the interface to listen on.
        port: port to listen on; 0 for any free one; None for 8080, or the next free one.
        judgements: file for the verdicts; None for `judgements.jsonl` in the first index.
        open_browser: whether to open the page in a browser.

    Raises:
        SearchError: if there are more than two indexes, one cannot be opened, or the port is taken.
        JudgementError: if verdicts cannot be written.
    """
    if len(folders) > 2:
        raise SearchError(f"{len(folders)} indexes: the page shows one, or two side by side; name fewer")
    token = choose_token(host)
    with contextlib.ExitStack() as resources:
        listener = resources.enter_context(_listen(host, port))
        access = Access(host, listener.getsockname()[1], token)
        searchers = [Searcher(folder) for folder in folders]
        recorded = Judgements(judgements or folders[0] / "judgements.jsonl")
        for searcher in searchers:
            logger.info(f"loading {display_path(searcher.index.path)}: {counted(len(searcher.index), 'window')}")
            searcher.load()
        reader = SpanReader()
        resources.callback(reader.close)
        previews = Previews(reader)
        resources.callback(previews.close)
        app = Guard(build_app(Site(searchers, recorded, reader, previews)), access)
        _describe(access, recorded)
        if open_browser:
            webbrowser.open(access.url)
        _run(app, listener)


def _listen(host: str, port: int | None) -> socket.socket:
    """Returns a socket that is bound to the port, or to the next free one if no port was asked for."""
    asked = range(DEFAULT_PORT, DEFAULT_PORT + _OTHER_PORTS) if port is None else (port,)
    reason: OSError | None = None
    for number in asked:
        try:
            listener = socket.create_server((host, number), family=_family(host))
        except OSError as error:
            reason = error
            continue
        if number and number != asked[0]:
            logger.info(f"port {asked[0]} is taken, so the page is on port {number}")
        return listener
    where = f"{host} port {port}" if port is not None else f"{host} ports {asked[0]} to {asked[-1]}"
    raise SearchError(
        f"cannot listen on {where} ({reason and reason.strerror}): choose another port with --port (0: any free one), or "
        "another --host"
    ) from reason


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _describe(access: Access, judgements: Judgements) -> None:
    logger.info(f"results that you judge good are written to {display_path(judgements.path)}")
    if not is_loopback(access.host):
        logger.warning(
            "everybody who has the address below can search and watch these videos; the connection is not encrypted, so use "
            "it only in a network that you trust"
        )
    logger.info(f"ready at {access.url}  (Ctrl-C ends it)")


def _run(app: Guard, listener: socket.socket) -> None:
    settings = uvicorn.Config(
        app,
        lifespan="off",
        log_level="warning",
        access_log=False,  # addresses have queries, and perhaps the token
        server_header=False,
        timeout_graceful_shutdown=_END_S,
        log_config=None,
    )
    with sigterm_event() as terminated:
        try:
            uvicorn.Server(settings).run(sockets=[listener])
        except KeyboardInterrupt:
            logger.info("ended")
        if terminated.is_set():
            raise Terminated("ended")
