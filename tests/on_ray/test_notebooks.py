"""The notebooks in experiments/notebooks run from the first cell to the last, on a run and an index of real films."""

import os
from pathlib import Path

import av
import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

from waver.on_ray.stages.index import run_index
from waver.runs.checkpoint import checkpoint_config, save_checkpoint
from waver.search.windows import Windows
from waver.training.build import build_training

NOTEBOOK = Path(__file__).parents[2] / "experiments" / "notebooks" / "search.ipynb"


def write_film(path: Path, seconds: int, seed: int) -> None:
    """Writes an H.264 file with 10 frames a second, each in a colour of its own."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(seconds * 10):
            picture = np.tile(rng.integers(0, 256, 3, np.uint8), (48, 64, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_config) -> dict[str, str]:
    """Environment variables that name a run, and an index of a film of 9 s and one of 3 s."""
    folder = tmp_path_factory.mktemp("notebook")
    torch.manual_seed(3)
    checkpoint = folder / "run" / "checkpoint_epoch_0001"
    save_checkpoint(checkpoint, build_training(tiny_config, num_steps=1, device=torch.device("cpu")), tiny_config)
    (folder / "videos").mkdir()
    for seed, seconds in enumerate((9, 3)):
        write_film(folder / "videos" / f"{seconds}.mp4", seconds, seed)
    config = checkpoint_config(checkpoint)
    run_index(checkpoint, config, [folder / "videos"], folder / "index", Windows(2.0, 1.0), progress=False)
    return {"WAVER_RUN": str(checkpoint), "WAVER_INDEX": str(folder / "index")}


def test_the_notebook_shows_what_it_says(places, tmp_path, monkeypatch):
    for name, place in places.items():
        monkeypatch.setenv(name, place)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parents[2]), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output["text"] for output in outputs if output.output_type == "stream" and output.name == "stdout")
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 4, "three queries and a timeline"
    assert "texts: (3, " in text
    assert "videos: (2, 3, 32)" in text
    assert "10 windows; " in text
    assert "like " in text.partition("against ")[0]
    assert text.rstrip().count("%") == 3, "a share for each sentence"


def test_the_notebook_has_neither_outputs_nor_paths_of_a_machine():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    assert not any(root in NOTEBOOK.read_text() for root in ("/home/", "/tmp/", "/Users/", "/root/", "/work/"))
