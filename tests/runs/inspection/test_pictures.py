import io

import numpy as np
import pytest
from PIL import Image

from waver.runs.inspection.pictures import colours, font, one_line, read_thumbnails, shrink, text_width, to_png, wrap

TEXTS = {
    "plain": "a man is cooking fish in the kitchen while someone talks about cars " * 3,
    "scripts": "日本語の猫 עברית عربى 👨‍👩‍👧 e\u0301 \u2028 " * 9,
    "broken": "\ud800 \x00\x07 \x1b[0m",
    "one word": "x" * 5000,
    "empty": "",
    "spaces": " \n\t ",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_wrapped_lines_fit_the_width(text):
    for width in (3, 60, 200):
        for max_lines in (1, 3, 100):
            lines = wrap(text, width=width, size=12, max_lines=max_lines)
            assert len(lines) <= max_lines
            # Kerning between words, and a letter that is wider than the line all by itself.
            assert all(text_width(line, 12) <= width + 3 or len(line.rstrip(".")) <= 1 for line in lines)
            for line in lines:
                font(12).getmask(line)  # can be drawn


def test_wrap_keeps_all_words_or_ends_in_dots():
    words = TEXTS["plain"].split()
    assert " ".join(wrap(TEXTS["plain"], width=200, size=12, max_lines=100)).split() == words
    lines = wrap(TEXTS["plain"], width=200, size=12, max_lines=2)
    assert lines[-1].endswith("...")
    assert " ".join(lines)[:-3].split()[:-1] == words[: len(" ".join(lines).split()) - 1]
    assert "".join(wrap("y" * 300, width=100, size=12, max_lines=100)) == "y" * 300


def test_one_line_is_printable():
    assert one_line("two\nlines\tand a \x00 \ud800 猫") == "two lines and a ? ? 猫"


def test_thumbnails_are_evenly_spaced(store):
    found = read_thumbnails(store, ["v02", "v20", "v02", "v00"], size=8, num_frames=2)
    assert list(found) == ["v02", "v20", "v00"]
    frames, (length,) = store.read(["v02"])
    assert length == 3
    # Each pixel is the mean of four.
    means = frames[0, [0, 2]].reshape(2, 8, 2, 8, 2, 3).astype(float).mean((2, 4))
    np.testing.assert_allclose(found["v02"], means, atol=1)
    assert found["v20"].shape == (0, 8, 8, 3)  # not decoded
    assert found["v00"].shape == (1, 8, 8, 3)  # it has one


def test_shrink_resizes_in_both_directions():
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert shrink(frames, 16) is frames
    assert shrink(frames, 40).shape == (2, 40, 40, 3)
    assert shrink(frames[:0], 8).shape == (0, 8, 8, 3)


def test_colours_get_brighter():
    light = colours(np.linspace(-1, 1, 50), -1.0, 1.0).astype(int) @ [299, 587, 114]
    assert (np.diff(light) > 0).all()
    assert (colours(np.array([-9.0, 9.0]), -1.0, 1.0) == colours(np.array([-1.0, 1.0]), -1.0, 1.0)).all()
    assert (colours(np.full((2, 2), 0.5), 0.5, 0.5) == colours(np.array(0.0), 0.0, 1.0)).all()


def test_png_is_small_and_looks_the_same():
    picture = np.full((90, 100, 3), 255, np.uint8)
    picture[:, 50:] = np.random.default_rng(0).integers(100, 140, (90, 50, 3))
    data = to_png(picture)
    read = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(read - picture).max() <= 16
    plain = io.BytesIO()
    Image.fromarray(picture).save(plain, "PNG")
    assert len(data) < len(plain.getvalue()) / 2
