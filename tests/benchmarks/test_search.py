import sys

import pytest

from waver.benchmarks.search import measure_search


@pytest.mark.slow
def test_every_part_of_an_index_and_every_way_to_search_is_measured(context):
    rows = measure_search(context)
    assert [row.way for row in rows] == [
        "embeddings into one file",
        "opening the file",
        "building candidates",
        "query, candidates alone",
        "query, candidates ranked exactly",
        "query, all windows from the disk",
        "query, all windows in memory",
    ]
    assert [len(row.values) for row in rows] == [1, 1, 1, 64, 64, 1, 64]
    assert all(value > 0 for row in rows for value in row.values)
    assert "100.0% of the ten best windows are among them, measured on 64 synthetic captions" in rows[2].note
    assert "p95" in rows[3].note


def test_without_faiss_the_row_says_what_to_install(context, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    (row,) = measure_search(context)
    assert (row.values, row.note) == ((), "not run: FAISS is not installed: pip install -e '.[search]'")
