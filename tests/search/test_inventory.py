"""The windows that an index keeps, lacks and forgets, when places and names of videos change."""

from pathlib import Path

import pytest

from waver.data.embedding_store import EmbeddingSettings, create_embeddings
from waver.search.index import IndexSettings, create_index, read_windows
from waver.search.inventory import Inventory
from waver.search.windows import VideosError, Windows, find_videos

SETTINGS = IndexSettings("/a/checkpoint", "w", Windows(10.0, 5.0), EmbeddingSettings("windows", 4, "fp32", "w", {}))


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path.parent


def inventory(folder: Path, place: Path) -> Inventory:
    create_index(folder, SETTINGS)
    create_embeddings(folder / "embeddings", SETTINGS.embeddings)
    return Inventory(folder, SETTINGS, find_videos([place]))


def add_all(folder: Path, place: Path) -> None:
    """Indexes the first window of each video; videos that cannot be decoded need no embedding."""
    there = inventory(folder, place)
    for row in list(there.missing()):
        there.add(row | {"status": "corrupt", "error": "no video", "video_s": None})
    there.write()


def test_a_video_does_not_replace_another_one_of_the_same_name_from_another_folder(tmp_path):
    one, other = write(tmp_path / "one" / "0001.mp4", "one"), write(tmp_path / "other" / "0001.mp4", "other")
    add_all(tmp_path / "index", one)
    with pytest.raises(VideosError, match=r"1 videos have the names of other videos .*0001.mp4; .*/one/0001.mp4 still"):
        inventory(tmp_path / "index", other)
    assert read_windows(tmp_path / "index")["path"].to_pylist() == [str(one / "0001.mp4")]


def test_videos_whose_folder_was_copied_moved_or_changed_keep_their_names(tmp_path):
    one, copy = write(tmp_path / "one" / "0001.mp4", "one"), write(tmp_path / "copy" / "0001.mp4", "one")
    add_all(tmp_path / "index", one)
    assert not list(inventory(tmp_path / "index", copy).missing()), "a copy has the same content"
    (tmp_path / "link").symlink_to(one)
    write(one / "0001.mp4", "changed")
    assert len(list(inventory(tmp_path / "index", tmp_path / "link").missing())) == 1, "the same file by another name"
    one.rename(tmp_path / "moved")
    assert len(list(inventory(tmp_path / "index", tmp_path / "moved").missing())) == 1


def test_windows_are_in_one_order_whatever_order_they_were_indexed_in(tmp_path):
    segments = [(0.0, 2.0), (0.0, 9.0), (0.0, None), (4.0, 5.0)]
    write(tmp_path / "films" / "a.mp4", "film")
    tables = []
    for order in (segments, segments[::-1]):
        folder = tmp_path / f"index{len(tables)}"
        for number in range(1, len(order) + 1):
            rows = "".join(f"a.mp4,{start},{'' if end is None else end}\n" for start, end in order[:number])
            (tmp_path / "films" / "list.csv").write_text("video,start_s,end_s\n" + rows)
            add_all(folder, tmp_path / "films" / "list.csv")
        tables.append(read_windows(folder)["window_id"].to_pylist())
    assert tables[0] == tables[1] == ["a.mp4@0-2", "a.mp4@0-9", "a.mp4@0-", "a.mp4@4-5"]
