import unicodedata

import pytest

from waver.data.annotations.similar_names import find_similar

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("name", "file", "difference"),
    [
        ("video0", "video0.mp4", "with .mp4 added"),
        ("video0.avi", "video0.mp4", "with .mp4 in place of .avi"),
        ("video0.mp4", "video0", "without .mp4"),
        ("video0", "video0.gif", "with .gif added"),
        ("videos/video0.mp4", "video0.mp4", "without 'videos/' in front"),
        ("data/videos/a/video0.mp4", "a/video0.mp4", "without 'data/videos/' in front"),
        ("/old/videos/video0.mp4", "video0.mp4", "without '/old/videos/' in front"),
        ("https://example.org/v/video%200.mp4?x=1#t", "video 0.mp4", "without 'https://example.org/v/' in front"),
        ("video0.mp4", "a/b/video0.mp4", "in a subfolder"),
        ("b/video0.mp4", "a/b/video0.mp4", "in a subfolder"),
        ("c/video0.mp4", "a/video0.mp4", "in another folder"),
        ("kitchen\\video0.mp4", "kitchen/video0.mp4", "with / in place of \\"),
        ("Video0.mp4", "video0.mp4", "in other case (capital and small letters)"),
        ("A/video0.mp4", "a/video0.mp4", "in other case (capital and small letters)"),
        (f"{COMPOSED}.mp4", f"{DECOMPOSED}.mp4", "with accents in another Unicode form (NFC, NFD)"),
        (f"{DECOMPOSED}/a.mp4", f"{COMPOSED}/a.mp4", "with accents in another Unicode form (NFC, NFD)"),
        (" video0.mp4\u200b", "video0.mp4", "without blanks, quotes or invisible characters"),
        ("'video0.mp4'", "video0.mp4", "without blanks, quotes or invisible characters"),
        ("video0.mp4#3", "video0.mp4", "without #0 ..."),
        ("1.mp4", "0001.mp4", "with another number of leading zeros"),
        ("VIDEOS\\video0", "video0.mp4", "with / in place of \\ and without 'VIDEOS/' in front and with .mp4 added"),
    ],
)
def test_the_difference_of_two_names_is_told(name, file, difference):
    assert find_similar([name], ["other.mp4", file]) == {name: (file, difference)}


def test_the_file_in_the_most_similar_folder_is_chosen_and_other_names_have_none():
    files = ["a/x.mp4", "b/x.mp4", "c/x.mp4"]
    assert find_similar(["data/b/x", "d/x", "x.mp4", "y.mp4", "x1.mp4", ""], files) == {
        "data/b/x": ("b/x.mp4", "without 'data/' in front and with .mp4 added")
    }


def test_one_of_several_files_in_a_folder_is_named():
    assert find_similar(["x"], ["a/x.mp4", "a/x.webm"]) == {"x": ("a/x.mp4", "in a subfolder and with .mp4 added")}


def test_versions_in_names_are_no_endings():
    assert find_similar(["v1.0", "v1.2"], ["v1.0.mp4", "v1.1.mp4"]) == {"v1.0": ("v1.0.mp4", "with .mp4 added")}
