"""Dictionaries from a text file with a phrase on each line."""

import pytest

from waver.knowledge.errors import KnowledgeError
from waver.knowledge.phrase_file import read_phrases


def test_each_phrase_is_read_once_with_the_number_of_its_lines(tmp_path):
    path = tmp_path / "phrases.txt"
    path.write_text("\ufeffriding a horse\n\n  chopping onions \nriding a horse\r\npêche à la ligne", encoding="utf-8")
    phrases = read_phrases(path)
    assert phrases["phrase"].to_pylist() == ["riding a horse", "chopping onions", "pêche à la ligne"]
    assert phrases["count"].to_pylist() == [2, 1, 1]
    assert phrases["phrase_id"].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "does not exist"), (b" \n\n", "has no phrase"), ("pêche".encode("utf-16"), "cannot be read as UTF-8")],
)
def test_a_file_without_phrases_is_refused(tmp_path, content, expected):
    path = tmp_path / "phrases.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KnowledgeError, match=rf"vocabulary\.file = .*phrases\.txt {expected}"):
        read_phrases(path)
