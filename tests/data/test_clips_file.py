import pickle
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from waver.data.clip import Clip
from waver.data.clip_store import ClipStore, StoreSettings
from waver.data.clip_store_writer import CLIPS_SCHEMA, create_store, write_block
from waver.data.clips_file import ClipsFile
from waver.data.ledger import DecodedClip, StoreError

SETTINGS = StoreSettings(frames_per_second=1.0, max_frames=5, size=16)
NUM_FRAMES = {"a": 3, "b": 5, "c": 3, "long-name": 1, "ü": 3}
PLAIN = {"compression": "none", "use_dictionary": False, "write_statistics": False}


@pytest.fixture
def clips() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, (number, 16, 16, 3), np.uint8) for name, number in NUM_FRAMES.items()}


@pytest.fixture
def path(tmp_path: Path, clips) -> Path:
    """The clips file of a store of one block."""
    create_store(tmp_path, SETTINGS)
    write_block(
        tmp_path,
        SETTINGS,
        [
            DecodedClip(
                name, f"{name}.mp4", 0.0, Clip(frames, tuple(map(float, range(len(frames)))), 25.0, 9, 9, "none")
            )
            for name, frames in clips.items()
        ],
    )
    (file,) = (tmp_path / "clips").iterdir()
    return file


def rewrite(path: Path, clips: dict[str, np.ndarray], schema: pa.Schema = CLIPS_SCHEMA, **options) -> None:
    """Writes the clips file again, in another way."""
    table = pq.read_table(path).cast(schema)
    with pq.ParquetWriter(path, schema, **(PLAIN | options)) as writer:
        for row in range(len(clips)):
            writer.write_table(table.slice(row, 1))


def check_content(store: ClipStore, clips: dict[str, np.ndarray]) -> None:
    for _ in range(2):
        frames, num_frames = store.read(list(clips), np.full((len(clips), *store.clip_shape), 7, np.uint8))
        assert num_frames.tolist() == list(map(len, clips.values()))
        for read, expected in zip(frames, clips.values(), strict=True):
            np.testing.assert_array_equal(read[: len(expected)], expected)
            assert not read[len(expected) :].any()


def read_all_at_place(path: Path, clips: dict[str, np.ndarray]) -> list:
    """Returns the envelope of each row; checks the frames of those that have one."""
    file, envelopes = ClipsFile(path), []
    for row, (name, expected) in enumerate(clips.items()):
        target = np.zeros((5, 16, 16, 3), np.uint8)
        envelopes.append(file.read_at_place(row, name, target))
        if envelopes[-1]:
            np.testing.assert_array_equal(target[: len(expected)], expected)
    return envelopes


def test_rows_that_waver_wrote_are_read_at_their_place(path, clips):
    envelopes = read_all_at_place(path, clips)
    assert [envelope.num_frames for envelope in envelopes] == list(NUM_FRAMES.values())
    a, b, c, long_name, two_bytes = envelopes
    assert a == c, "rows of the same shape differ in nothing else"
    assert len({a, b, long_name, two_bytes}) == 4
    store = ClipStore(path.parents[1])
    check_content(store, clips)
    assert store._known_envelopes == {a, b, long_name, two_bytes}
    check_content(pickle.loads(pickle.dumps(store)), clips)


@pytest.mark.parametrize(
    ("options", "at_place"),
    [
        ({"compression": "zstd"}, False),
        ({"compression": "snappy", "data_page_version": "2.0"}, False),
        ({"use_dictionary": True}, False),
        ({"data_page_size": 100, "write_batch_size": 1}, True),
        ({"data_page_version": "2.0"}, True),
        ({"write_statistics": True}, True),
        ({"write_page_checksum": True}, True),
        ({"write_page_index": True, "write_statistics": True}, True),
    ],
    ids=str,
)
def test_rows_that_were_written_in_another_way_are_read_right(path, clips, options, at_place):
    rewrite(path, clips, **options)
    check_content(ClipStore(path.parents[1]), clips)
    assert any(read_all_at_place(path, clips)) == at_place


def test_other_columns_are_read_right(path, clips):
    """Of other writers: another order, another name of the list's element, columns that cannot be null."""
    frames = CLIPS_SCHEMA.field("frames")
    for field, options in (
        (pa.field("frames", pa.list_(pa.field("item", pa.binary()))), {"use_compliant_nested_type": False}),
        (frames.with_nullable(False), {}),
    ):
        rewrite(path, clips, CLIPS_SCHEMA.set(1, field), **options)
        check_content(ClipStore(path.parents[1]), clips)
        assert read_all_at_place(path, clips) == [None] * len(clips)
    table = pq.read_table(path)
    rewrite(path, clips)
    with pq.ParquetWriter(path, pa.schema(list(reversed(CLIPS_SCHEMA))), **PLAIN) as writer:
        for row in range(len(clips)):
            writer.write_table(table.cast(CLIPS_SCHEMA).select(CLIPS_SCHEMA.names[::-1]).slice(row, 1))
    check_content(ClipStore(path.parents[1]), clips)


def test_every_flipped_bit_beside_the_pixels_is_seen_as_pyarrow_sees_it(path, clips):
    """In a store that knows the envelopes: frames are those that pyarrow finds in the damaged file, or it is an error."""
    store, intact = ClipStore(path.parents[1]), path.read_bytes()
    check_content(store, clips)
    start, clip_id_end, end, num_frames = ClipsFile(path).layout[0].tolist()
    pixels_start = end - num_frames * (4 + 768) + 4
    beside_pixels = [*range(start, pixels_start), *range(pixels_start + 768, pixels_start + 772)]
    assert intact[clip_id_end - 1 : clip_id_end] == b"a"
    num_refused = 0
    for position in beside_pixels:
        for bit in range(8):
            damaged = bytearray(intact)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                row = pq.ParquetFile(path).read_row_group(0, columns=["clip_id", "frames"]).to_pylist()[0]
                expected = row["frames"] if row["clip_id"] == "a" else None
            except (OSError, pa.ArrowException, UnicodeDecodeError):
                expected = None
            if expected and [value and len(value) for value in expected] == [768] * 3:
                frames, _ = store.read(["a"])
                assert [frame.tobytes() for frame in frames[0, :3]] == expected
            else:
                num_refused += 1
                with pytest.raises(StoreError, match="is damaged or gone"):
                    store.read(["a"])
    assert num_refused > 8 * len(beside_pixels) / 2
    path.write_bytes(intact)
    check_content(store, clips)


def test_a_file_that_is_cut_off_under_an_open_store_is_an_error(path, clips):
    store, intact = ClipStore(path.parents[1]), path.read_bytes()
    check_content(store, clips)
    for length in (ClipsFile(path).layout[3, 2] - 1, 1000, 0):
        with path.open("r+b") as file:
            file.truncate(length)
        with pytest.raises(StoreError, match="is damaged or gone"):
            store.read(["long-name"])
    path.write_bytes(intact)
    check_content(store, clips)


def test_rows_that_changed_their_places_are_an_error(path, clips):
    """The clip_id tells: in a store that has read the file, and in one that opens it."""
    store = ClipStore(path.parents[1])
    check_content(store, clips)
    table = pq.read_table(path)
    with pq.ParquetWriter(path, CLIPS_SCHEMA, **PLAIN) as writer:
        for row in (2, 1, 0, 3, 4):
            writer.write_table(table.slice(row, 1))
    for reader in (store, ClipStore(path.parents[1])):
        for name in ("a", "c"):
            with pytest.raises(StoreError, match="is another clip"):
                reader.read([name])
        assert reader.read(["b"])[1].tolist() == [5]


def test_more_frames_than_the_store_may_have_are_an_error(path, clips):
    rows = pq.read_table(path).to_pylist()
    rows[0]["frames"] *= 2
    for num_frames, error in ((3, "another number of frames than it claims"), (6, "6 frames, at most 5 are expected")):
        rows[0]["num_frames"] = num_frames
        with pq.ParquetWriter(path, CLIPS_SCHEMA, **PLAIN) as writer:
            for row in rows:
                writer.write_table(pa.Table.from_pylist([row], CLIPS_SCHEMA))
        with pytest.raises(StoreError, match=error):
            ClipStore(path.parents[1]).read(["a"])


def test_threads_read_one_store(path, clips, monkeypatch):
    monkeypatch.setattr("waver.data.clip_store._MAX_OPEN_BLOCKS", 1)
    more = {f"more{i}": frames for i, frames in enumerate(clips.values())}
    for name, frames in more.items():
        clip = Clip(frames, tuple(map(float, range(len(frames)))), 25.0, 9, 9, "none")
        write_block(path.parents[1], SETTINGS, [DecodedClip(name, f"{name}.mp4", 0.0, clip)])
    store, failures = ClipStore(path.parents[1]), []

    def read() -> None:
        try:
            for _ in range(5):
                check_content(store, clips | more)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
