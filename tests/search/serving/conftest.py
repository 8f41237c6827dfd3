"""Real films, an index of them that this process makes, and a real server on loopback."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import av
import numpy as np
import pyarrow as pa
import pytest
import torch
import uvicorn

from waver.data.clip_store import ClipStore
from waver.data.clip_store_writer import create_store, write_block, write_manifest
from waver.data.embedding_store import EmbeddingSettings, create_embeddings
from waver.data.ledger import DecodedClip, FileStamp
from waver.data.video.decoder import Decoder
from waver.runs.checkpoint import save_checkpoint
from waver.runs.inputs import store_settings
from waver.search import load
from waver.search.embedder import WindowEmbedder
from waver.search.index import IndexSettings, checkpoint_digest, create_index, window_id, write_windows
from waver.search.serving.app import Site, build_app
from waver.search.serving.judgements import Judgements
from waver.search.serving.searcher import Searcher
from waver.search.serving.security import Access, Guard
from waver.search.serving.videos import Previews, SpanReader
from waver.search.windows import Windows
from waver.training.build import build_training

FILMS = {"garden/short.mp4": 4, "kitchen/long film.mp4": 12, "kitchen/old.avi": 6}
"""Name -> length in seconds; browsers cannot play the last one."""
WINDOWS = Windows(4.0, 2.0)
RATE = 8


def write_film(path: Path, seconds: int, seed: int) -> None:
    """A film of one colour for each second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    codec = "mpeg4" if path.suffix == ".avi" else "libx264"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(seconds):
            pixels = np.broadcast_to(rng.integers(0, 255, 3).astype(np.uint8), (64, 96, 3)).copy()
            for number in range(RATE):
                pixels[:, number * 8 : number * 8 + 8] = 255 - pixels[0, 95]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="session")
def films(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for seed, (name, seconds) in enumerate(FILMS.items()):
        write_film(folder / name, seconds, seed)
    return folder


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory, tiny_config):
    """Makes a run with random weights, of an interaction; returns its checkpoint."""

    def make(kind: str, name: str, seed: int) -> Path:
        config = tiny_config.model_copy(
            update={"similarity": tiny_config.similarity.model_copy(update={"kind": kind}), "name": name}
        )
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp("runs") / name / "checkpoint_epoch_0001"
        save_checkpoint(folder, build_training(config, num_steps=1, device=torch.device("cpu")), config)
        return folder

    return make


def decode(path: Path, clips: list[dict[str, Any]], config: Any) -> ClipStore:
    """Makes the clip store of some clips (clip_id, path, start_s, end_s)."""
    settings = store_settings(config)
    create_store(path, settings)
    arguments = {"frames_per_second": settings.frames_per_second, "max_frames": settings.max_frames}
    with Decoder(60.0) as decoder:
        results = [
            DecodedClip(
                clip["clip_id"],
                clip["path"],
                0.0,
                decoder.read_clip(
                    clip["path"], start_s=clip["start_s"], end_s=clip["end_s"], target=settings.target, **arguments
                ),
            )
            for clip in clips
        ]
    write_block(path, settings, results)
    write_manifest(path, settings, complete=True)
    return ClipStore(path)


@pytest.fixture(scope="session")
def decode_clips():
    return decode


@pytest.fixture(scope="session")
def make_index(tmp_path_factory, films):
    """Indexes the films with the model of a checkpoint, as `waver index` does."""

    def make(checkpoint: Path, folder_of_films: Path = films, names: dict[str, int] = FILMS) -> Path:
        folder, model = tmp_path_factory.mktemp("index") / "films.index", load(checkpoint)
        rows = []
        for name, seconds in names.items():
            path = folder_of_films / name
            stamp = FileStamp.of(path)
            assert stamp
            for start_s, end_s in ((0.0, WINDOWS.window_s), *WINDOWS.later(float(seconds))):
                rows.append(
                    {"window_id": window_id(name, start_s, end_s), "video_id": name, "path": str(path), "start_s": start_s,
                     "end_s": end_s, "video_s": float(seconds), "status": "ok", "error": None, "source": stamp.digest}
                )  # fmt: skip
        store = decode(folder / "decoding", [row | {"clip_id": row["window_id"]} for row in rows], model.config)
        digest = checkpoint_digest(checkpoint)
        embeddings = EmbeddingSettings("windows", 32, "fp32", digest, store.settings.key)
        create_index(folder, IndexSettings(str(checkpoint), digest, WINDOWS, embeddings))
        create_embeddings(folder / "embeddings", embeddings)
        embed = WindowEmbedder(checkpoint, model.config, store.path, folder, embeddings)
        embed(pa.table({name: [row[name] for row in rows] for name in ("window_id", "source")}))
        write_windows(folder, rows)
        return folder

    return make


@pytest.fixture(scope="session")
def index(make_index, make_checkpoint) -> Path:
    return make_index(make_checkpoint("wti", "first", 3))


@pytest.fixture(scope="session")
def other_index(make_index, make_checkpoint) -> Path:
    return make_index(make_checkpoint("dp", "second", 4))


@dataclass(frozen=True)
class Server:
    """A server that runs in a thread."""

    access: Access
    site: Site

    @property
    def url(self) -> str:
        return self.access.url

    def ask(
        self,
        path: str,
        parameters: dict[str, Any] | None = None,
        *,
        method: str = "GET",
        body: Any = None,
        **headers: str,
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Sends a request with the path exactly as given; names of headers have _ in place of -."""
        connection = http.client.HTTPConnection("127.0.0.1", self.access.port, timeout=60)
        address = f"{path}?{urlencode(parameters)}" if parameters else path
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            named = {"Content-Type": "application/json", **named}
        connection.request(method, address, None if body is None else json.dumps(body), named)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, response.headers, content

    def json(self, path: str, parameters: dict[str, Any] | None = None, **options: Any) -> Any:
        status, _, content = self.ask(path, parameters, **options)
        assert status == 200, content
        return json.loads(content)

    def judge(self, query: str, index: int, window: int, verdict: str | None) -> Any:
        body = {"query": query, "index": index, "window": window, "verdict": verdict}
        return self.json("/api/verdicts", method="POST", body=body)


@pytest.fixture(scope="session")
def make_server():
    """Runs a server over some indexes in a thread; verdicts go to a file in a folder."""

    @contextmanager
    def run(folder: Path, *indexes: Path, token: str | None = None, host: str = "127.0.0.1") -> Iterator[Server]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            access, reader = Access(host, listener.getsockname()[1], token), SpanReader()
            searchers = [Searcher(index) for index in indexes]
            site = Site(searchers, Judgements(folder / "judged.jsonl"), reader, Previews(reader))
            config = uvicorn.Config(Guard(build_app(site), access), lifespan="off", log_level="warning")
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            try:
                yield Server(access, site)
            finally:
                server.should_exit = True
                thread.join(30)
                site.previews.close()
                reader.close()

    return run


@pytest.fixture
def start(make_server, tmp_path):
    """Starts a server over some indexes, which ends with the test."""
    with ExitStack() as servers:
        yield lambda *indexes, **options: servers.enter_context(make_server(tmp_path, *indexes, **options))
