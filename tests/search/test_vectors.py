"""The file of embeddings, beside the blocks that it is made of."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from waver.data.embedding_store import EmbeddingSettings, create_embeddings, write_items
from waver.search import SearchError
from waver.search.index import WINDOWS_SCHEMA
from waver.search.vectors import Vectors, move_embeddings, window_keys, windows_digest

SETTINGS = EmbeddingSettings("windows", 8, "fp32", "a tower", {})
FRAMES = 3


def windows_of(numbers: list[int], source: str = "digest") -> pa.Table:
    rows = [{"window_id": f"film.mp4@{number}-{number + 10}", "source": source} for number in numbers]
    return pa.Table.from_pylist(rows, schema=WINDOWS_SCHEMA)


def values_of(window: str, source: str) -> np.ndarray:
    """Returns 1 to 3 frames that only this window has."""
    seed = abs(hash_of(window + source))
    return np.random.default_rng(seed).normal(size=(1 + seed % FRAMES, 8)).astype(np.float32)


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode(), "little") % 2**31


def embed(folder: Path, windows: pa.Table) -> None:
    create_embeddings(folder / "embeddings", SETTINGS)
    pairs = zip(windows["window_id"].to_pylist(), windows["source"].to_pylist(), strict=True)
    write_items(folder / "embeddings", SETTINGS, [(*pair, values_of(*pair)) for pair in pairs])


def check(folder: Path, windows: pa.Table) -> None:
    """Checks that each window has its own embeddings, in any order."""
    numbers = [*range(len(windows))[::-1], 0]
    values, lengths = Vectors(folder, SETTINGS, windows).read(numbers, FRAMES)
    for number, of_window, length in zip(numbers, values, lengths, strict=True):
        expected = values_of(windows["window_id"][number].as_py(), windows["source"][number].as_py())
        assert length == len(expected)
        np.testing.assert_array_equal(of_window[:length], expected)
        assert not of_window[length:].any()


def blocks(folder: Path) -> list[Path]:
    return list((folder / "embeddings" / "items").glob("*.parquet"))


def files(folder: Path) -> list[Path]:
    return list((folder / "vectors").glob("*.values"))


def test_embeddings_move_into_one_file_and_blocks_are_deleted(tmp_path):
    windows = windows_of([*range(50)])
    for first in range(0, 50, 7):
        embed(tmp_path, windows.slice(first, 7))
    check(tmp_path, windows)
    move_embeddings(tmp_path, SETTINGS, windows, FRAMES)
    assert (len(blocks(tmp_path)), len(files(tmp_path))) == (0, 1)
    check(tmp_path, windows)
    before = files(tmp_path)
    move_embeddings(tmp_path, SETTINGS, windows, FRAMES)
    assert files(tmp_path) == before, "nothing changed"


def test_windows_that_came_later_are_read_from_their_blocks_until_they_are_many(tmp_path):
    embed(tmp_path, windows_of([*range(100)]))
    move_embeddings(tmp_path, SETTINGS, windows_of([*range(100)]), FRAMES)
    few = windows_of([*range(50, 102), *range(50)])
    embed(tmp_path, windows_of([100, 101]))
    move_embeddings(tmp_path, SETTINGS, few, FRAMES)
    assert len(blocks(tmp_path)) == 1, "two of 102 windows are not worth a new file"
    check(tmp_path, few)
    many = windows_of([*range(130)])
    embed(tmp_path, windows_of([*range(102, 130)]))
    move_embeddings(tmp_path, SETTINGS, many, FRAMES)
    assert (len(blocks(tmp_path)), len(files(tmp_path))) == (0, 1)
    check(tmp_path, many)


def test_embeddings_of_videos_that_changed_or_are_gone_are_dropped(tmp_path):
    embed(tmp_path, windows_of([*range(40)]))
    move_embeddings(tmp_path, SETTINGS, windows_of([*range(40)]), FRAMES)
    size = files(tmp_path)[0].stat().st_size
    embed(tmp_path, windows_of([0, 1], "another digest"))
    changed = pa.concat_tables([windows_of([0, 1], "another digest"), windows_of([*range(2, 20)])])
    check(tmp_path, changed)
    move_embeddings(tmp_path, SETTINGS, changed, FRAMES)
    check(tmp_path, changed)
    assert files(tmp_path)[0].stat().st_size < size


def test_a_reader_keeps_the_file_that_it_has_opened(tmp_path):
    windows = windows_of([*range(10)])
    embed(tmp_path, windows)
    move_embeddings(tmp_path, SETTINGS, windows, FRAMES)
    reader = Vectors(tmp_path, SETTINGS, windows)
    move_embeddings(tmp_path, SETTINGS, windows_of([1, 2]), FRAMES)
    np.testing.assert_array_equal(reader.read([9], FRAMES)[0][0, 0], values_of("film.mp4@9-19", "digest")[0])


def test_what_is_missing_is_told(tmp_path):
    windows = windows_of([*range(10)])
    embed(tmp_path, windows.slice(0, 4))
    move_embeddings(tmp_path, SETTINGS, windows.slice(0, 4), FRAMES)
    embed(tmp_path, windows.slice(6, 3))
    assert Vectors(tmp_path, SETTINGS, windows).missing() == [4, 5, 9]
    assert Vectors(tmp_path, SETTINGS, windows.slice(0, 4)).missing() == []


def test_a_command_that_was_stopped_before_the_blocks_were_deleted_is_continued(tmp_path):
    windows = windows_of([*range(10)])
    embed(tmp_path, windows)
    kept = [(block, block.read_bytes()) for block in blocks(tmp_path)]
    move_embeddings(tmp_path, SETTINGS, windows, FRAMES)
    for block, content in kept:
        block.write_bytes(content)
    check(tmp_path, windows)
    embed(tmp_path, windows_of([10]))
    move_embeddings(tmp_path, SETTINGS, windows_of([*range(11)]), FRAMES)
    assert not blocks(tmp_path)
    check(tmp_path, windows_of([*range(11)]))


def test_what_a_command_that_was_killed_leaves_is_deleted_by_the_next_one(tmp_path):
    windows = windows_of([*range(20)])
    embed(tmp_path, windows)
    (block,) = blocks(tmp_path)
    content = block.read_bytes()
    move_embeddings(tmp_path, SETTINGS, windows, FRAMES)
    block.write_bytes(content)  # killed before it deleted the blocks
    expected = set((tmp_path / "vectors").iterdir())
    for name in ("old.values", "old.rows.npy", "new.values.1234.part"):
        (tmp_path / "vectors" / name).write_bytes(b"left over")
    move_embeddings(tmp_path, SETTINGS, windows, FRAMES)
    assert blocks(tmp_path) == []
    assert set((tmp_path / "vectors").iterdir()) == expected
    check(tmp_path, windows)


def test_damage_is_told(tmp_path):
    windows = windows_of([*range(10)])
    embed(tmp_path, windows)
    move_embeddings(tmp_path, SETTINGS, windows, FRAMES)
    path = files(tmp_path)[0]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(
        SearchError, match=r"vectors is damaged \(the values of a window have changed\): delete this folder"
    ):
        Vectors(tmp_path, SETTINGS, windows).read([9], FRAMES)
    path.write_bytes(content[:-1])
    with pytest.raises(SearchError, match=r"vectors is damaged \(.*cut off\)"):
        Vectors(tmp_path, SETTINGS, windows)
    path.unlink()
    with pytest.raises(SearchError, match=r"vectors is damaged \(.*No such file"):
        Vectors(tmp_path, SETTINGS, windows)


def test_windows_are_known_by_id_source_and_order():
    windows = windows_of([0, 1, 2])
    assert len(set(window_keys(windows).tolist())) == 3
    chunks = pa.concat_tables([windows.slice(0, 1), windows.slice(1)])
    assert windows_digest(chunks) == windows_digest(windows)
    others = (windows.take([1, 0, 2]), windows.slice(0, 2), windows_of([0, 1, 2], "other"), windows.slice(1))
    assert len({windows_digest(table) for table in (windows, *others)}) == 5
