import io
import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from waver.model.embeddings import Embeddings
from waver.runs.inspection.projection import Point, PointSet, one_vector, with_border, write_projection

MASK = torch.tensor([[True, True, False], [True, False, False]])
WEIGHTS = torch.tensor([[0.75, 0.25, 0.0], [1.0, 0.0, 0.0]])


def points(num: int, value: float) -> PointSet:
    thumbnails = np.random.default_rng(num).integers(0, 256, (num, 8, 8, 3), dtype=np.uint8)
    rows = tuple(Point("clip", f"caption\tof {n}\n猫 \ud800", f"clip{n}", "plain" if n else "") for n in range(num))
    return PointSet(np.full((num, 4), value, np.float32) + np.arange(num, dtype=np.float32)[:, None], rows, thumbnails)


@contextmanager
def tensorboard(folder: Path):
    """A TensorBoard on a port of its own; yields what asks it (path) -> bytes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--reload_interval", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    def ask(path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/{path}", timeout=10) as answer:
            return answer.read()

    try:
        yield ask
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for(ask, path: str) -> list[str]:
    """Asks until there is an answer that is not empty."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if answer := json.loads(ask(path)):
                return answer
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.1)
    raise TimeoutError(path)


@pytest.mark.slow
def test_running_tensorboard_finds_new_points(tmp_path):
    events, name = tmp_path / "run" / "events", "run/events/projector"
    with SummaryWriter(str(events)) as writer:
        writer.add_scalar("loss", 1.0, 1)
    with tensorboard(tmp_path) as ask:
        assert wait_for(ask, "runs") == ["run/events"]
        assert json.loads(ask("plugin/projector/runs")) == []
        write_projection(events / "projector", {"both": points(5, 0.5), "clips": points(3, 0.25)})
        assert wait_for(ask, "plugin/projector/runs") == [name]

        info = json.loads(ask(f"plugin/projector/info?run={name}"))["embeddings"]
        assert [(e["tensorName"], e["tensorShape"]) for e in info] == [("both", [5, 4]), ("clips", [3, 4])]
        assert info[0]["sprite"]["singleImageDim"] == [8, 8]

        def vectors(which: str) -> np.ndarray:
            data = ask(f"plugin/projector/tensor?run={name}&name={which}")
            return np.frombuffer(data, np.float32).reshape(-1, 4)

        np.testing.assert_allclose(vectors("both"), points(5, 0.5).vectors)
        lines = ask(f"plugin/projector/metadata?run={name}&name=both").decode().splitlines()
        assert lines[0].split("\t") == ["kind", "caption", "clip", "style"]
        assert lines[1].split("\t") == ["clip", "caption of 0 猫 ?", "clip0", "-"]
        assert len(lines) == 6
        sprite = Image.open(io.BytesIO(ask(f"plugin/projector/sprite_image?run={name}&name=both")))
        assert sprite.size == (24, 24)
        for number, thumbnail in enumerate(points(5, 0.5).thumbnails):
            top, left = 8 * (number // 3), 8 * (number % 3)
            np.testing.assert_array_equal(np.asarray(sprite)[top : top + 8, left : left + 8], thumbnail)

        # The next evaluation replaces it, and is seen once the other set was looked at.
        write_projection(events / "projector", {"both": points(5, 7.0), "clips": points(3, 8.0)})
        np.testing.assert_allclose(vectors("clips"), points(3, 8.0).vectors)
        np.testing.assert_allclose(vectors("both"), points(5, 7.0).vectors)
    assert len(list((events / "projector").glob("*tfevents*"))) == 1
    assert not list(events.rglob("*.part"))


@pytest.mark.parametrize("end_token_only", [True, False])
def test_one_vector_ignores_padding(end_token_only):
    values = torch.randn(2, 3, 4)
    found = one_vector(Embeddings(values, MASK, WEIGHTS), end_token_only=end_token_only)
    padded = values.masked_fill(~MASK[..., None], torch.nan)
    torch.testing.assert_close(one_vector(Embeddings(padded, MASK, WEIGHTS), end_token_only=end_token_only), found)
    first, second = (v / v.norm() for v in values[0, :2])
    expected = second if end_token_only else 0.75 * first + 0.25 * second
    torch.testing.assert_close(found[0], expected / expected.norm())
    torch.testing.assert_close(found[1], values[1, 0] / values[1, 0].norm())


def test_dot_product_is_the_weighted_mean_of_cosines():
    text, video = (Embeddings(torch.randn(2, 3, 4), MASK, WEIGHTS) for _ in range(2))
    a, b = (one_vector(e, end_token_only=False)[0] for e in (text, video))
    t, v = ((e.values[0] / e.values[0].norm(dim=1, keepdim=True)) for e in (text, video))
    mean = sum(WEIGHTS[0, n] * WEIGHTS[0, f] * (t[n] @ v[f]) for n in range(2) for f in range(2))
    norms = [(WEIGHTS[0, :2, None] * e[:2]).sum(0).norm() for e in (t, v)]
    assert (a @ b).item() == pytest.approx((mean / norms[0] / norms[1]).item(), abs=1e-5)


def test_thumbnails_of_captions_have_a_border():
    frames = np.zeros((2, 20, 20, 3), np.uint8)
    framed = with_border(frames)
    assert (frames == 0).all()
    assert (framed[:, 4:-4, 4:-4] == 0).all()
    assert (framed.any(-1).sum((1, 2)) == 400 - 144).all()
    assert math.prod(framed.shape) == frames.size
