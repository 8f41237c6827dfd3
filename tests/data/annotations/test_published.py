from typing import get_args

from waver.data.annotations import DATA_SETS, published_split
from waver.data.annotations.published import split_digest


def test_split_digest_depends_on_the_set_of_clips_only():
    assert split_digest(["b", "a"]) == split_digest(iter(["a", "b"])) == "7e18f737311b2dc3"
    assert split_digest(["a", "b"]) != split_digest(["a", "c"]) != split_digest(["ab"])


def test_parts_of_a_published_split_have_different_digests():
    splits = [split for data_set in DATA_SETS.values() for split in data_set.published_splits.values()]
    assert len(splits) == 7
    for split in splits:
        assert len({part.digest for part in split.parts.values()}) == len(split.parts)


def test_every_split_of_a_published_data_set_is_described():
    for data_set in DATA_SETS.values():
        if "split" in data_set.model_fields:
            assert data_set.published_splits.keys() == {*get_args(data_set.model_fields["split"].annotation)}
        else:
            assert not data_set.published_splits


def test_published_split_is_found_by_format_and_split():
    assert published_split("vatex", "1k5").protocol == "VATEX 1k5 (CLIP2Video)"
    assert published_split("table", None) is None
