import pyarrow as pa
import pytest

from waver.data.annotations.table_files.parquet import _as_python


@pytest.mark.parametrize("index", [2, -1])
def test_an_index_outside_of_its_dictionary_is_damage(index):
    indices = pa.array([0, index], pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, pa.array(["a", "b"]), safe=False)
    with pytest.raises(pa.ArrowInvalid, match="out of bounds"):
        _as_python(column)


def test_values_of_a_dictionary_are_those_of_the_column():
    column = pa.array(["a", None, "b", "a"]).dictionary_encode()
    assert _as_python(column) == ["a", None, "b", "a"]
