"""Files of embeddings, read by the libraries of their formats."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from waver.search.export.formats import FORMATS, Items, Part, write_items

N, L, D = 5, 3, 4


def make(number: int = N) -> tuple[Items, Part]:
    """Returns items in two parts, and all of them as one."""
    rng = np.random.default_rng(0)
    mask = np.arange(L) < rng.integers(1, L + 1, (number, 1))
    values = rng.standard_normal((number, L, D)).astype(np.float32) * mask[..., None]
    weights = (mask / mask.sum(1, keepdims=True)).astype(np.float32)
    whole = Part(values, mask, weights, rng.standard_normal((number, D)).astype(np.float32))
    names = pa.table(
        {
            "id": pa.array([f"video {row}, ünïcode" for row in range(number)]),
            "style": pa.array([None, *["plain"] * (number - 1)], pa.string()),
            "clip": pa.array(range(-1, number - 1), pa.int64()),
            "start_s": pa.array([None, *[0.5] * (number - 1)], pa.float64()),
        }
    )
    parts = (Part(*(array[rows] for array in vars(whole).values())) for rows in (slice(0, 2), slice(2, None)))
    return Items(names, L, D, parts), whole


def read(folder, format: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a file, without its text."""
    if format == "npz":
        return dict(np.load(folder / "items.npz", allow_pickle=False))
    if format == "safetensors":
        return load_file(folder / "items.safetensors")
    table = pq.read_table(folder / "items.parquet")
    arrays = {name: np.stack(table[name].to_numpy()) for name in table.column_names}
    return arrays | {"values": arrays["values"].reshape(*arrays["mask"].shape, -1)}


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_is_read(tmp_path, format):
    items, whole = make()
    files = write_items(tmp_path, "items", items, format)
    assert sorted(files) == sorted(path.name for path in tmp_path.iterdir())
    found = read(tmp_path, format)
    for name, array in vars(whole).items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    np.testing.assert_array_equal(found["clip"], range(-1, N - 1))
    np.testing.assert_array_equal(found["start_s"], [np.nan, *[0.5] * (N - 1)])


def test_text_is_in_the_file_or_beside_it(tmp_path):
    for format in FORMATS:
        write_items(tmp_path, "items", make()[0], format)
    expected = make()[0].names.to_pylist()
    assert [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()] == expected
    assert pq.read_table(tmp_path / "items.parquet", columns=["id", "style", "clip", "start_s"]).to_pylist() == expected
    arrays = read(tmp_path, "npz")
    assert arrays["id"].tolist() == [row["id"] for row in expected]
    assert arrays["style"].tolist() == ["", *["plain"] * (N - 1)]


def test_a_safetensors_file_is_aligned(tmp_path):
    write_items(tmp_path, "items", make()[0], "safetensors")
    content = (tmp_path / "items.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert size % 8 == 0
    for name, tensor in header.items():
        assert tensor["data_offsets"][0] % {"I64": 8, "F64": 8, "F32": 4, "BOOL": 1}[tensor["dtype"]] == 0, name


def test_columns_of_parquet_are_lists_of_a_fixed_size(tmp_path):
    write_items(tmp_path, "items", make()[0], "parquet")
    schema = pq.read_schema(tmp_path / "items.parquet")
    assert schema.field("pooled").type == pa.list_(pa.float32(), D)
    assert schema.field("values").type == pa.list_(pa.float32(), L * D)
    assert pq.ParquetFile(tmp_path / "items.parquet").num_row_groups == 2


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_cannot_be_finished_leaves_nothing(tmp_path, format):
    items, whole = make()

    def broken():
        yield whole
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_items(tmp_path, "items", Items(items.names, L, D, broken()), format)
    assert not list(tmp_path.iterdir())


def test_the_size_is_that_of_the_embeddings(tmp_path):
    items, _ = make()
    write_items(tmp_path, "items", items, "safetensors")
    arrays = load_file(tmp_path / "items.safetensors")
    assert items.num_bytes == sum(arrays[name].nbytes for name in ("values", "weights", "pooled", "mask"))
