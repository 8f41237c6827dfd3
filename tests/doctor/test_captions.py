import pyarrow as pa

from waver.doctor.captions import check_caption_lengths, check_shared_captions


def test_captions_as_the_model_reads_them_are_counted(captions, load_tiny):
    (finding,) = check_shared_captions(load_tiny(), captions)
    assert (finding.level, finding.found) == ("ok", "each training caption stands on one clip")
    texts = captions["caption"].to_pylist()
    splits = captions["split"].to_pylist()
    texts[1] = texts[0].upper()  # v00 and v01
    texts[splits.index("test")] = texts[5]  # only test has it twice
    changed = captions.set_column(captions.schema.get_field_index("caption"), "caption", pa.array(texts))
    (finding,) = check_shared_captions(load_tiny(), changed)
    num_train = splits.count("train")
    assert finding.level == "info"
    assert finding.found.startswith(f"2 of {num_train} training captions stand on more than one clip")
    assert [finding.level for finding in check_caption_lengths(load_tiny(), captions)] == ["ok"] * 3
    assert {finding.level for finding in check_caption_lengths(load_tiny(**{"text.max_words": 5}), captions)} == {
        "warning"
    }
