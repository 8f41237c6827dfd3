"""A host of weights on loopback, in place of Hugging Face's."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants


class _NotFound(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_error(404)

    def log_message(self, *_) -> None:
        """Prints nothing."""


class _Repository(BaseHTTPRequestHandler):
    """One repository, whose files are those of a folder, through the parts of the hub's API that its client uses."""

    name: str
    folder: Path
    commit = 40 * "c"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0]
        file = self.folder / path.rsplit("/", 1)[-1]
        if path.startswith(f"/api/models/{self.name}/tree/"):
            files = [{"type": "file", "path": each.name, "oid": "0", "size": 0} for each in self.folder.iterdir()]
            body = json.dumps(files).encode()
        elif path.startswith(f"/{self.name}/resolve/") and file.is_file():
            body = file.read_bytes()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Prints nothing."""


@contextmanager
def _serve(handler: type[BaseHTTPRequestHandler], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While the body runs, the hub is a server on loopback."""
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        files = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        yield
        server.shutdown()
        thread.join()


@contextmanager
def hub_without_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While the body runs, the hub is a server that answers, but has no file."""
    with _serve(_NotFound, monkeypatch):
        yield


@contextmanager
def hub_with(repository: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While the body runs, the hub is a server with one repository, whose files are those of a folder."""
    handler = type("Repository", (_Repository,), {"name": repository, "folder": folder})
    with _serve(handler, monkeypatch):
        yield
