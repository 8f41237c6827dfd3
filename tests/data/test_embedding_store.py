import os
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from logs import logged

from waver.data.embedding_store import (
    ITEMS_SCHEMA,
    EmbeddingError,
    EmbeddingSettings,
    EmbeddingStore,
    create_embeddings,
    mark_complete,
    read_settings,
    write_items,
)
from waver.tools.object_store import local_copy

WIDTH = 6
SETTINGS = EmbeddingSettings("frames", WIDTH, "fp16", "a tower", {"size": 16})
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def values(seed: int, length: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((length, WIDTH)).astype(np.float32)


def make(folder: Path, *blocks: list[tuple[str, str, np.ndarray]], settings: EmbeddingSettings = SETTINGS) -> Path:
    create_embeddings(folder, settings)
    for block in blocks:
        write_items(folder, settings, block)
    return folder


@pytest.mark.parametrize("precision", DTYPES)
def test_reads_the_rounded_values_in_the_given_order(tmp_path, precision):
    written = {"a": values(1), "b": values(2, 5), "c": values(3, 1), "ß": values(4, 2)}
    items = [(item, "s", of_item) for item, of_item in written.items()]
    make(tmp_path, items[:3], items[3:], settings=replace(SETTINGS, precision=precision))
    found, lengths = EmbeddingStore(tmp_path).read([(item, "s") for item in "cßab"], 5)
    assert lengths.tolist() == [1, 2, 3, 5]
    for row, item in zip(found, "cßab", strict=True):
        rounded = torch.from_numpy(written[item]).to(DTYPES[precision]).float().numpy()
        np.testing.assert_array_equal(row[: len(rounded)], rounded)
        assert not row[len(rounded) :].any()


def test_bf16_is_rounded_as_torch_rounds_it(tmp_path):
    bits = np.concatenate([np.arange(0x3F7F7F00, 0x3F818100, 7), [0x00008000, 0x80008000, 0x3F808000, 0x3F818000]])
    numbers = bits.astype(np.uint32).view(np.float32)
    numbers = numbers[: len(numbers) // WIDTH * WIDTH].reshape(-1, WIDTH)
    make(tmp_path, [("a", "", numbers)], settings=replace(SETTINGS, precision="bf16"))
    found, _ = EmbeddingStore(tmp_path).read([("a", "")], len(numbers))
    np.testing.assert_array_equal(found[0], torch.from_numpy(numbers).bfloat16().float().numpy())


def test_any_program_reads_the_files_as_parquet(tmp_path):
    make(tmp_path, [(f"clip {number}", "s", values(number, 1 + number % 4)) for number in range(300)])
    (file,) = (tmp_path / "items").iterdir()
    table = pq.read_table(file)
    assert table.schema.equals(ITEMS_SCHEMA)
    found, lengths = EmbeddingStore(tmp_path).read([(item, "s") for item in table["id"].to_pylist()], 4)
    assert table["length"].to_pylist() == lengths.tolist()
    for data, row, length in zip(table["values"].to_pylist(), found, lengths, strict=True):
        np.testing.assert_array_equal(np.frombuffer(data, "<f2").reshape(-1, WIDTH), row[:length])


def test_an_item_of_another_source_is_missing_until_it_is_embedded_again(tmp_path):
    make(tmp_path, [("a", "old", values(1)), ("b", "old", values(2))])
    asked = {"a": "new", "b": "old", "c": "old"}
    assert EmbeddingStore(tmp_path).missing(asked) == ["a", "c"]
    with pytest.raises(EmbeddingError, match=r"'a' has no embedding in .*: run `waver embed CONFIG`"):
        EmbeddingStore(tmp_path).read([("a", "new")], 3)
    write_items(tmp_path, SETTINGS, [("a", "new", values(3))])
    store = EmbeddingStore(tmp_path)
    assert store.missing(asked) == ["c"]
    found, _ = store.read([("a", "new"), ("a", "old")], 3)
    np.testing.assert_array_equal(found, np.stack([values(3), values(1)]).astype(np.float16))


def test_a_store_made_from_something_else_is_refused_with_both_values(tmp_path):
    make(tmp_path)
    for other, said in (
        ({"precision": "bf16"}, "precision: fp16 in the store, bf16 requested"),
        ({"tower": "another tower"}, "tower: a tower in the store, another tower requested"),
        ({"inputs": {"size": 32}}, r"inputs: \{'size': 16\} in the store, \{'size': 32\} requested"),
    ):
        with pytest.raises(EmbeddingError, match=f"was made from something else .{said}"):
            create_embeddings(tmp_path, replace(SETTINGS, **other))
    assert read_settings(tmp_path) == SETTINGS
    create_embeddings(tmp_path, SETTINGS)


def test_a_missing_or_damaged_manifest_is_an_error(tmp_path):
    with pytest.raises(EmbeddingError, match=r"there is no embedding store in .*: run `waver embed CONFIG` first"):
        EmbeddingStore(tmp_path)
    (tmp_path / "manifest.json").write_text('{"settings": {"kind": "frames"}}')
    with pytest.raises(EmbeddingError, match=r"manifest.json cannot be read"):
        EmbeddingStore(tmp_path)


def test_values_that_cannot_be_stored_are_an_error_and_leave_nothing(tmp_path):
    bad = values(1)
    bad[1, 2] = 1e5
    make(tmp_path)
    with pytest.raises(EmbeddingError, match=r"'b' has values .* in fp16: set embeddings.precision to bf16 or fp32"):
        write_items(tmp_path, SETTINGS, [("a", "", values(2)), ("b", "", bad)])
    bad[1, 2] = np.nan
    with pytest.raises(
        EmbeddingError, match=r"'b' has values that are NaN or infinite: the weights are probably damaged"
    ):
        write_items(tmp_path, SETTINGS, [("b", "", bad)])
    assert not list((tmp_path / "items").iterdir())


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
import waver.data.embedding_store as store
def items():
    yield "a", "", np.ones((3, 6), np.float32)
    yield "b", "", np.ones((3, 6), np.float32)
real = store.pq.write_table
def write(table, file, **options):
    real(table, file, **options)
    file.flush()
    os._exit(9)
settings = store.EmbeddingSettings("frames", 6, "fp16", "a tower", {"size": 16})
store.create_embeddings(Path(sys.argv[1]), settings)
store.write_items(Path(sys.argv[1]), settings, [("done", "", np.zeros((1, 6), np.float32))])
store.pq.write_table = write
store.write_items(Path(sys.argv[1]), settings, items())
"""


def test_a_block_whose_writer_was_killed_does_not_count(tmp_path):
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert ended.returncode == 9
    assert len(list((tmp_path / "items").glob("*.part"))) == 1
    assert EmbeddingStore(tmp_path).missing({"a": "", "b": "", "done": ""}) == ["a", "b"]


def test_several_writers_at_once(tmp_path):
    create_embeddings(tmp_path, SETTINGS)

    def write(writer: int) -> None:
        for i in range(5):
            write_items(tmp_path, SETTINGS, [(f"{i}", "", values(i)), (f"{writer}-{i}", "", values(i))])

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    mark_complete(tmp_path)
    store = EmbeddingStore(tmp_path)
    assert len(store) == store.manifest["num_items"] == 5 + 4 * 5
    assert store.manifest["complete"]
    found, _ = store.read([("4", ""), ("2-4", ""), ("0", "")], 3)
    np.testing.assert_array_equal(found, np.stack([values(4), values(4), values(0)]).astype(np.float16))


def test_items_of_a_truncated_file_are_missing(tmp_path):
    make(tmp_path, [("a", "", values(1))], [("b", "", values(2))])
    first = min((tmp_path / "items").iterdir())
    os.truncate(first, first.stat().st_size - 9)
    with logged() as said:
        assert EmbeddingStore(tmp_path).missing({"a": "", "b": ""}) == ["a"]
    assert f"{first} is damaged" in said[0]
    write_items(tmp_path, SETTINGS, [("a", "", values(1))])
    assert not EmbeddingStore(tmp_path).missing({"a": "", "b": ""})


def test_changed_values_are_an_error_that_names_the_file(tmp_path):
    make(tmp_path, [("a", "", values(1)), ("b", "", values(2))])
    (file,) = (tmp_path / "items").iterdir()
    data = bytearray(file.read_bytes())
    place = data.index(values(2).astype("<f2").tobytes())
    data[place + 7] ^= 1
    file.write_bytes(data)
    store = EmbeddingStore(tmp_path)
    store.read([("a", "")], 3)
    with pytest.raises(EmbeddingError, match=rf"{file} is damaged \(the values of 'b' have changed\): delete it"):
        store.read([("b", "")], 3)


@pytest.mark.parametrize("options", [{"compression": "snappy"}, {"compression": "none", "row_group_size": 1}])
def test_files_that_cannot_be_mapped_are_left_out(tmp_path, options):
    make(tmp_path, [("a", "", values(1)), ("b", "", values(2))])
    (file,) = (tmp_path / "items").iterdir()
    pq.write_table(pq.read_table(file), file, **options)
    with logged() as said:
        assert len(EmbeddingStore(tmp_path)) == 0
    assert "is damaged" in said[0]


def test_it_can_be_pickled_after_reading(tmp_path):
    make(tmp_path, [("a", "", values(1))])
    store = EmbeddingStore(tmp_path)
    store.read([("a", "")], 3)
    found, _ = pickle.loads(pickle.dumps(store)).read([("a", "")], 3)
    np.testing.assert_array_equal(found[0], values(1).astype(np.float16))


@pytest.mark.slow
def test_values_stay_on_disk(tmp_path):
    """Opening a store of 64 MiB, and reading an item of it, takes far less memory than its values."""
    code = f"""
import resource
from pathlib import Path
from waver.data.embedding_store import EmbeddingStore
import pyarrow.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
EmbeddingStore(Path({str(tmp_path)!r})).read([("7", "")], 8192)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    large = np.zeros((8192, 512), np.float32)
    settings = replace(SETTINGS, width=512)
    make(tmp_path, [(str(number), "", large) for number in range(8)], settings=settings)
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(ran.stdout) < 48 * 1024, "kilobytes; the item itself takes 16 MiB, and 8 MiB as stored"


def test_import_is_light():
    code = "import sys, waver.data.embedding_store; print({'torch', 'ray'} & sys.modules.keys() or 'nothing')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "nothing"


@pytest.mark.slow
def test_a_store_in_an_object_store_is_read_from_another_machine(s3, tmp_path):
    here, there = (local_copy(f"{s3}/embeddings", tmp_path / machine) for machine in ("here", "there"))
    make(here, [("a", "", values(1))], [("b", "", values(2))])
    mark_complete(here)
    found, _ = EmbeddingStore(there).read([("b", ""), ("a", "")], 3)
    np.testing.assert_array_equal(found, np.stack([values(2), values(1)]).astype(np.float16))
