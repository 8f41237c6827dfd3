"""The windows of an index as files, and their scores without waver."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from waver.cli import app
from waver.data.embedding_store import EmbeddingSettings, create_embeddings
from waver.runs.checkpoint import save_checkpoint
from waver.search import SearchError, load, open_index
from waver.search.embedder import WindowEmbedder
from waver.search.export import FORMATS, ExportError, export_index
from waver.search.index import IndexSettings, checkpoint_digest, create_index, write_windows
from waver.search.windows import Windows
from waver.training.build import build_training


@pytest.fixture(scope="module")
def index(tmp_path_factory, tiny_config, store):
    """An index of the decoded clips: windows of 10 s of one film, and a whole video."""
    folder, checkpoint = tmp_path_factory.mktemp("index"), tmp_path_factory.mktemp("run") / "checkpoint_epoch_0001"
    torch.manual_seed(3)
    save_checkpoint(checkpoint, build_training(tiny_config, num_steps=1, device=torch.device("cpu")), tiny_config)
    digest = checkpoint_digest(checkpoint)
    embeddings = EmbeddingSettings("windows", 32, "fp32", digest, store.settings.key)
    create_index(folder, IndexSettings(str(checkpoint), digest, Windows(10.0, 5.0), embeddings))
    create_embeddings(folder / "embeddings", embeddings)
    clips = store.ok_clip_ids()
    WindowEmbedder(checkpoint, load(checkpoint).config, store.path, folder, embeddings)(
        pa.table({"window_id": clips, "source": ["a digest"] * len(clips)})
    )
    rows = [
        {"window_id": clip, "video_id": "film", "path": "/nowhere/film.mp4", "start_s": 5.0 * number,
         "end_s": 5.0 * number + 10, "video_s": 500.0, "status": "ok", "error": None, "source": "a digest"}
        for number, clip in enumerate(clips)
    ]  # fmt: skip
    rows[0] |= {"start_s": None, "end_s": None, "video_id": "all", "path": "/nowhere/all.mp4"}
    write_windows(folder, rows)
    return folder


def blocks(folder) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_the_readme_searches_as_waver_does(index, tmp_path, monkeypatch, format):
    assert export_index(index, tmp_path / "out", format) == len(open_index(index))
    monkeypatch.chdir(tmp_path / "out")
    names = {}
    query, windows, scores, faiss, _ = blocks(tmp_path / "out")
    exec(query + windows + scores, names)
    found = open_index(index).search("a man folds a paper plane", 10, distinct=False)
    assert [answer.window for answer in found] == names["best"].tolist()
    np.testing.assert_allclose(names["scores"][0][names["best"]], [answer.score for answer in found], atol=1e-6)
    pytest.importorskip("faiss")
    exec(faiss, names)
    cosines = names["texts"]["pooled"] @ names["windows"]["pooled"].T
    np.testing.assert_allclose(names["found"], -np.sort(-cosines, axis=1)[:, :10], rtol=1e-5)


def test_the_windows_have_their_names_times_and_embeddings(index, tmp_path):
    export_index(index, tmp_path, "parquet")
    table, opened = pq.read_table(tmp_path / "windows.parquet"), open_index(index)
    columns = ["window_id", "video_id", "path", "start_s", "end_s"]
    assert table.select(columns).to_pylist() == opened.windows.select(columns).to_pylist()
    assert None in table["start_s"].to_pylist()
    embeddings = opened.embeddings(range(len(opened)))
    mask = embeddings.mask.numpy()
    np.testing.assert_array_equal(np.stack(table["mask"].to_numpy()), mask)
    values = np.stack(table["values"].to_numpy()).reshape(*mask.shape, -1)
    np.testing.assert_array_equal(values[mask], embeddings.values.numpy()[mask])
    np.testing.assert_allclose(np.stack(table["weights"].to_numpy()), embeddings.weights.numpy(), rtol=1e-6)


def test_the_command_knows_an_index_from_a_run(index, tmp_path, said):
    command = ["export", str(index), "--to", str(tmp_path / "out")]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    assert any(line.startswith(f"{len(open_index(index))} windows are in ") for line in said)
    refused = CliRunner().invoke(app, [*command, "--split", "test"])
    assert "an index has neither splits nor settings" in str(refused.exception)


def test_what_is_no_index_and_what_is_not_ours_is_told(index, tmp_path):
    with pytest.raises(SearchError, match="there is no index in"):
        export_index(tmp_path, tmp_path / "out", "npz")
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"file is a file: choose a folder \(--to FOLDER\)"):
        export_index(index, tmp_path / "file", "npz")
    with pytest.raises(ExportError, match="is not empty, and not an export"):
        export_index(index, index, "npz")
