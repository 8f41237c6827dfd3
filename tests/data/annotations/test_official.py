from waver.data.annotations.official import OFFICIAL, split_digest


def test_hash_of_a_split_is_one_of_its_set_of_clips():
    assert split_digest(["b", "a"]) == split_digest(iter(["a", "b"])) == "7e18f737311b2dc3"
    assert split_digest(["a", "b"]) != split_digest(["a", "c"]) != split_digest(["ab"])


def test_parts_of_a_split_are_different_ones():
    for parts in OFFICIAL.values():
        assert len({part.digest for part in parts.values()}) == len(parts)
