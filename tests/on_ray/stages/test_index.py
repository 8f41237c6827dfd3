"""`waver index` on real H.264 files, with decoders of Ray Data."""

import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from waver.config import ExperimentConfig, load_config
from waver.on_ray.stages import index as stage
from waver.on_ray.stages.index import IndexReport, run_index
from waver.runs.checkpoint import checkpoint_config, save_checkpoint
from waver.search import SearchError, open_index
from waver.search.windows import Windows
from waver.training.build import build_training

FILMS = {"short.mp4": 3, "deep/long.mp4": 11, "other.mp4": 5}
"""Video -> its length, seconds."""


def write_video(path: Path, seconds: int, seed: int) -> None:
    """Writes an H.264 file with 10 frames a second, each in a colour of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(seconds * 10):
            picture = np.broadcast_to(rng.integers(0, 256, 3, np.uint8), (48, 64, 3))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config) -> Path:
    torch.manual_seed(3)
    training = build_training(tiny_config, num_steps=1, device=torch.device("cpu"))
    folder = tmp_path_factory.mktemp("run") / "checkpoint_epoch_0001"
    save_checkpoint(folder, training, tiny_config)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed, (name, seconds) in enumerate(FILMS.items()):
        write_video(folder / name, seconds, seed)
    (folder / "bad.mp4").write_bytes(b"no video")
    return folder


def index(checkpoint: Path, videos: Path, folder: Path) -> IndexReport:
    return run_index(checkpoint, checkpoint_config(checkpoint), [videos], folder, Windows(4.0, 2.0), progress=False)


def test_films_are_indexed_in_windows_and_later_only_what_changed(checkpoint, videos, tmp_path, monkeypatch):
    config: ExperimentConfig = checkpoint_config(checkpoint)
    assert load_config(checkpoint / "config.yaml", stored=True) == config
    # Four windows a chunk: the eleven windows take several.
    monkeypatch.setattr(stage, "_CHUNK_BYTES", 4 * config.video.max_frames * config.video.size**2 * 3)
    folder = tmp_path / "index"
    monkeypatch.setattr(stage, "_FEW_WINDOWS", 0)  # decoders of Ray Data
    first = index(checkpoint, videos, folder)
    monkeypatch.undo()
    assert (first.num_videos, first.num_windows, first.num_embedded, first.num_forgotten) == (3, 8, 8, 0)
    assert list(first.failures.values()) == [["bad.mp4@0-4"]]
    assert not (folder / "decoding").exists()
    found = open_index(folder)
    assert found.windows["window_id"].to_pylist() == [
        *(f"deep/long.mp4@{start}-{start + 4}" for start in (0, 2, 4, 6, 8)),
        *(f"other.mp4@{start}-{start + 4}" for start in (0, 2)),
        "short.mp4@0-4",
    ]
    before = {answer.thumbnail: answer.score for answer in found.search("a red ball", top=9, distinct=False)}
    assert len(before) == 8
    assert all(thumbnail.is_file() for thumbnail in before)

    whole = found.model.embed_videos([videos / "short.mp4"])
    text = found.model.embed_texts(["a red ball"])
    assert found.model.similarity(text, whole)[0, 0] == pytest.approx(found.scores(text)[0, -1], abs=1e-6)

    unchanged = index(checkpoint, videos, folder)
    assert (unchanged.num_windows, unchanged.num_embedded) == (8, 0)

    write_video(videos / "other.mp4", 3, seed=9)
    (videos / "deep" / "long.mp4").unlink()
    write_video(videos / "new.mp4", 2, seed=10)
    changed = index(checkpoint, videos, folder)
    assert (changed.num_videos, changed.num_windows, changed.num_embedded, changed.num_forgotten) == (3, 3, 2, 1)
    after = open_index(folder)
    assert after.windows["window_id"].to_pylist() == ["new.mp4@0-4", "other.mp4@0-4", "short.mp4@0-4"]
    assert sum(thumbnail.is_file() for thumbnail in before) == 1, "pictures of windows that are gone are deleted"


def test_a_table_names_the_segments_to_index(checkpoint, tmp_path):
    for name, seconds in {"long.mp4": 11, "other.mp4": 5, "outside.mp4": 3}.items():
        write_video(tmp_path / name, seconds, seed=seconds)
    table = tmp_path / "list.csv"
    table.write_text("video,start_s,end_s\nlong.mp4,1,2.5\nlong.mp4,9,\nother.mp4,,\n")
    first = index(checkpoint, table, tmp_path / "index")
    assert (first.num_windows, first.failures) == (4, {})
    found = open_index(tmp_path / "index")
    names = ["long.mp4@1-2.5", "long.mp4@9-", "other.mp4@0-4", "other.mp4@2-6"]
    assert found.windows["window_id"].to_pylist() == names
    assert found.moment("long.mp4@1.5") == 0
    assert found.moment("long.mp4@0:10") == 1
    assert {(answer.start_s, answer.end_s) for answer in found.search("a ball")} >= {(1.0, 2.5), (9.0, None)}
    with pytest.raises(SearchError, match=r"has no window at 5 s: its windows are between 1 and 11 s"):
        found.moment("long.mp4@5")
    with pytest.raises(SearchError, match=r"has 2 windows: name a time, as in other.mp4@2"):
        found.moment("other.mp4")
    assert len(found.like(found.moment(f"{tmp_path / 'outside.mp4'}@1"))) == 3, "one of two windows that overlap"

    table.write_text("video,start_s,end_s\nlong.mp4,9,\n")
    changed = index(checkpoint, table, tmp_path / "index")
    assert changed.num_windows == 3, "a segment that is no longer listed is gone; a video that is not listed stays"


def test_an_indexing_that_was_stopped_resumes(checkpoint, videos, tmp_path, monkeypatch):
    """Stops after the first chunk, and again while a chunk is embedded."""
    copy = tmp_path / "videos"
    shutil.copytree(videos, copy)
    write_video(copy / "film.mp4", 9, seed=11)
    embed, calls = stage._Indexing._embed, []

    def stop_at_the_second(self, windows, *stores):
        calls.append(len(windows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        embed(self, windows, *stores)

    monkeypatch.setattr(stage._Indexing, "_embed", stop_at_the_second)
    folder = tmp_path / "index"
    with pytest.raises(KeyboardInterrupt):
        index(checkpoint, copy, folder)
    assert calls[0] > 0
    resumed = index(checkpoint, copy, folder)
    assert resumed.num_embedded == resumed.num_windows - calls[0]
    assert len(open_index(folder)) == resumed.num_windows


def test_candidates_are_found_among_many_windows_and_ranked_as_all_windows_are(checkpoint, tmp_path):
    copy, folder = tmp_path / "videos", tmp_path / "index"
    for seed, seconds in enumerate((3, 4, 3)):
        write_video(copy / f"{seed}.mp4", seconds, seed)
    config = checkpoint_config(checkpoint)
    arguments = (checkpoint, config, [copy], folder, Windows(1.0, 0.25))
    run_index(*arguments, progress=False)
    every = open_index(folder)
    assert every.candidates is None
    exact = every.search("a red ball", top=3)
    assert not list((folder / "embeddings" / "items").iterdir())

    run_index(*arguments, exact_up_to=8, progress=False)
    few = open_index(folder)
    assert few.candidates is not None
    assert few.candidates.candidacy.recall == 1, "there are fewer windows than candidates"
    assert few.search("a red ball", top=3) == exact
    among = np.arange(len(few)) % 2 == 0
    assert few.search("a red ball", top=5, among=among) == every.search("a red ball", top=5, among=among)
    assert few.like(0, top=3) == every.like(0, top=3)
    before = sorted((folder / "candidates").iterdir())
    run_index(*arguments, exact_up_to=8, progress=False)
    assert sorted((folder / "candidates").iterdir()) == before, "nothing changed"

    write_video(copy / "new.mp4", 2, seed=10)
    run_index(*arguments, exact_up_to=8, progress=False)
    changed = open_index(folder)
    assert changed.candidates.candidacy.num_windows == len(changed) > len(few)
    assert "new.mp4" in {answer.video_id for answer in changed.search("a red ball", top=100)}
    run_index(*arguments, exact_up_to=1000, progress=False)
    assert not (folder / "candidates").exists()


def test_embeddings_that_were_damaged_and_deleted_are_computed_again(checkpoint, videos, tmp_path):
    folder = tmp_path / "index"
    first = index(checkpoint, videos, folder)
    scores = [answer.score for answer in open_index(folder).search("a red ball")]
    shutil.rmtree(folder / "vectors")
    again = index(checkpoint, videos, folder)
    assert (again.num_windows, again.num_embedded) == (first.num_windows, first.num_windows)
    assert [answer.score for answer in open_index(folder).search("a red ball")] == scores
