import numpy as np
import pytest
import torch
import torch.nn.functional as F

from waver.model.embeddings import Embeddings
from waver.model.tokenizer import find_tokenizer
from waver.runs.inspection import interaction as module
from waver.runs.inspection.heat_map import HeatMap, draw_heat_map
from waver.runs.inspection.interaction import attention_map, interaction_map, interaction_of
from waver.runs.inspection.pictures import GIVEN, colours
from waver.training.build import build_student

CLIP = find_tokenizer("ViT-B-32")
CAPTION = "a pentagrammatical star"
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


@torch.no_grad()
def a_pair(student) -> tuple[tuple[str, ...], Embeddings, Embeddings]:
    """A caption of 9 tokens in 12 and a clip of 3 frames in 4; what stands in the padding is not to be seen."""
    ids, mask = CLIP([CAPTION], max_words=12)
    text = student.encode_text(ids, mask)
    frames = torch.randint(0, 256, (1, 4, 3, 16, 16), dtype=torch.uint8)
    video = student.encode_video(frames, torch.tensor([[True, True, True, False]]))
    text.values[0, 9:] = video.values[0, 3:] = 9.0
    return CLIP.strings(ids[0].tolist()), text, video


@pytest.mark.parametrize("kind", ["ti", "wti"])
def test_parts_without_padding_give_the_similarity(load_tiny, kind):
    student = build_student(load_tiny(**{"similarity.kind": kind})).eval()
    ids, text, video = a_pair(student)
    found = interaction_of(student, ids, text, video)
    assert found.tokens == ("<start>", "a", "pent-", "ag-", "ram-", "mat-", "ical", "star", "<end>")
    assert found.cosines.shape == (9, 3)
    for n, f in np.ndindex(*found.cosines.shape):
        cosine = F.cosine_similarity(text.values[0, n], video.values[0, f], dim=0).item()
        assert found.cosines[n, f] == pytest.approx(cosine, abs=1e-5)
    a, b = found.text_weights, found.video_weights
    if kind == "ti":
        assert a is None
        assert b is None
        a, b = (np.full(num, 1 / num) for num in found.cosines.shape)
    assert a.sum() == pytest.approx(1)
    assert b.sum() == pytest.approx(1)
    similarity = (found.cosines.max(1) @ a + found.cosines.max(0) @ b) / 2
    assert found.similarity == pytest.approx(similarity, abs=1e-5)
    assert found.similarity == pytest.approx(student.similarity(text, video).item())


def test_dp_has_the_end_token_only(load_tiny):
    student = build_student(load_tiny(**{"similarity.kind": "dp"})).eval()
    ids, text, video = a_pair(student)
    found = interaction_of(student, ids, text, video)
    assert found.tokens == ("<end>",)
    last = int(text.mask.sum()) - 1
    expected = [F.cosine_similarity(text.values[0, last], video.values[0, f], dim=0).item() for f in range(3)]
    np.testing.assert_allclose(found.cosines, [expected], atol=1e-5)
    assert found.text_weights is None


def test_xti_has_no_interaction_map(load_tiny):
    student = build_student(load_tiny(**{"similarity.kind": "xti"})).eval()
    assert interaction_of(student, *a_pair(student)) is None


def test_token_strings_hyphenate_pieces_of_words():
    def tokens(text):
        ids, mask = CLIP([text], max_words=20)
        return CLIP.strings(ids[0, mask[0]].tolist())

    assert tokens("A dog!") == ("<start>", "a", "dog", "!", "<end>")
    pieces = tokens("pentagrammatical")[1:-1]
    assert len(pieces) > 1
    assert all(piece.endswith("-") for piece in pieces[:-1])
    assert "".join(piece.removesuffix("-") for piece in pieces) == "pentagrammatical"
    assert len(tokens("猫 👍")) > 2  # bytes that are no letter by themselves


def heat(**changes) -> HeatMap:
    values = np.array([[0.1, 0.9, 0.3], [0.4, 0.2, 0.8]])
    return HeatMap(**{"title": "t", "notes": ("n",), "labels": ("one", "two"), "values": values, "low": 0.0, "high": 1.0,
                      **changes})  # fmt: skip


def runs(line: np.ndarray, colour: tuple[int, int, int]) -> list[int]:
    """Lengths of the runs of a colour in a line of pixels."""
    there = np.concatenate([[0], (line == colour).all(-1), [0]]).astype(int)
    return (np.flatnonzero(np.diff(there) == -1) - np.flatnonzero(np.diff(there) == 1)).tolist()


def test_cells_are_coloured_by_value():
    chosen = heat()
    picture, expected = draw_heat_map(chosen, FRAMES), colours(chosen.values, 0.0, 1.0)
    corners = {}
    for row, column in np.ndindex(2, 3):
        places = np.argwhere((picture == expected[row, column]).all(-1))
        assert len(places) > 500  # the colour bar has some pixels of it too
        block = [p for p in places.tolist() if (picture[p[0], p[1] : p[1] + 8] == expected[row, column]).all()]
        corners[row, column] = min(p[0] for p in block), min(p[1] for p in block)
    top, left = corners[0, 0]
    assert corners == {(r, c): (top + 20 * r, left + 64 * c) for r, c in np.ndindex(2, 3)}


def test_bar_lengths_are_proportional_to_weights():
    picture = draw_heat_map(
        heat(row_weights=np.array([0.25, 0.75]), column_weights=np.array([0.5, 0.25, 0.25])), FRAMES
    )
    blue = (picture == GIVEN).all(-1)
    rows = [run for y in np.flatnonzero(blue.any(1)) for run in runs(picture[y], GIVEN)]
    # Horizontal ones: 28 pixels (and one) for the largest, a third of it; vertical ones are as wide as a cell of 64 allows.
    assert set(rows) == {28 + 1, 9 + 1, 64 - 8}
    right = np.flatnonzero(blue.any(0)).max()
    assert [max(runs(picture[:, x], GIVEN)) for x in (right - 128, right - 64, right)] == [28 + 1, 14 + 1, 14 + 1]


@pytest.mark.slow
@pytest.mark.parametrize("num_frames", [1, 3, 12, 64])
@pytest.mark.parametrize("num_rows", [1, 40])
def test_heat_maps_of_any_size_are_drawn(num_rows, num_frames):
    values = np.random.default_rng(0).standard_normal((num_rows, num_frames))
    frames = np.zeros((num_frames, 16, 16, 3), np.uint8)
    labels = tuple(f"label {'猫' * n} \ud800" for n in range(num_rows))
    chosen = HeatMap("t" * 999, ("n" * 999,), labels, values, -1.0, 1.0, np.ones(num_rows), np.ones(num_frames), True)
    picture = draw_heat_map(chosen, frames)
    assert picture.shape[1] < 2000
    np.testing.assert_array_equal(picture, draw_heat_map(chosen, frames))


@pytest.mark.parametrize("kind", ["dp", "ti", "wti", "xclip"])
def test_interaction_map_is_drawn(load_tiny, kind):
    student = build_student(load_tiny(**{"similarity.kind": kind})).eval()
    found = interaction_of(student, *a_pair(student))
    picture = interaction_map(found, FRAMES, caption=CAPTION, clip_id="猫")
    assert picture.dtype == np.uint8
    # Weights are drawn where they were learned, and only there.
    assert ((picture == GIVEN).all(-1).sum() > 100) == (kind == "wti")


def test_phrases_are_drawn_best_match_first(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        module, "draw_heat_map", lambda heat, frames: drawn.append(heat) or np.zeros((1, 1, 3), np.uint8)
    )
    attention = np.random.default_rng(0).dirichlet(np.ones(30), 3)
    phrases = [f"does {number}" for number in range(30)]
    attention_map(attention, phrases, FRAMES, clip_id="c")
    (heat,) = drawn
    assert heat.labels == tuple(phrases[:24])
    np.testing.assert_array_equal(heat.values, attention.T[:24])
    np.testing.assert_allclose(heat.row_weights, attention.mean(0)[:24])
    assert "the first 24 of 30" in heat.notes[0]
    assert "0.03" in heat.notes[1]
