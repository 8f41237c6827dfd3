from dataclasses import replace

import numpy as np
import pytest
import torch

from waver.evaluation.evaluate import Evaluation
from waver.evaluation.ranking import Ranks
from waver.evaluation.top_clips import TopClips
from waver.model.tokenizer import Truncation
from waver.runs.inspection import strips
from waver.runs.inspection.pictures import GIVEN, RIGHT, WRONG
from waver.runs.inspection.strips import FRAME_SIZE, StripRow, clips_of_strip, draw_strip, text_to_video, video_to_text

INF = float("inf")
FRAMES = np.random.default_rng(0).integers(0, 200, (6, 4, FRAME_SIZE, FRAME_SIZE, 3), dtype=np.uint8)


@pytest.fixture
def evaluation() -> Evaluation:
    """Five clips, of which the last could not be decoded; clip 1 has three captions, the others one."""
    names = ("a", "b", "c", "d", "e")
    clip_of_text = torch.tensor([0, 1, 1, 1, 2, 3, 4])
    top = TopClips(
        torch.tensor([[0, 1, 3], [3, 1, 0], [1, 0, 2], [0, 2, 3], [2, 0, -1], [0, 2, 1], [0, 1, 2]]),
        torch.tensor([[0.9, 0.5, 0.1]] * 4 + [[0.75, 0.25, -INF]] + [[0.5, 0.5, 0.25]] * 2),
    )
    groups = TopClips(torch.tensor([[0, 1], [3, 1], [2, 0], [1, 4], [-1, -1]]), torch.tensor([[0.5, 0.25]] * 5))
    ranks = Ranks(
        torch.tensor([1, 2, 1, 4, 1, 3.5, INF]).double(),
        torch.tensor([1, 2, 1, 3, INF]).double(),
        torch.tensor([0, 0, 0, 0, 0, 1, 0]),
        torch.zeros(5, dtype=torch.long),
        top,
        groups,
    )
    return Evaluation(
        {}, {}, "test", 5, 7, ("e",), ranks, names, tuple(f"{names[c]}#{i}" for i, c in enumerate(clip_of_text.tolist())),
        clip_of_text, "own", {}, "cpu", "fp32", Truncation(7, 0, 0, 9, 77), torch.zeros(7, dtype=torch.bool),
    )  # fmt: skip


TEXTS = tuple(f"caption number {number}" for number in range(7))
THUMBNAILS = {name: FRAMES[i] for i, name in enumerate("abcd")} | {"e": FRAMES[0, :0]}


@pytest.fixture
def rows(monkeypatch):
    """What strips would draw: (title, detail, rows)."""
    drawn = []
    monkeypatch.setattr(strips, "draw_strip", lambda *what: drawn.append(what) or np.zeros((1, 1, 3), np.uint8))
    return drawn


def described(rows: list[StripRow]) -> list[tuple]:
    return [(row.colour, *row.labels, row.text, row.clip_id) for row in rows]


def test_caption_strip_has_its_clip_and_top_clips(evaluation, rows):
    text_to_video(evaluation, TEXTS, 1, THUMBNAILS)
    ((title, detail, found),) = rows
    assert title == TEXTS[1]
    assert detail == "b#1: its clip is found at rank 2 of 5"
    assert described(found) == [
        (GIVEN, "its clip", TEXTS[2], "b"),  # another caption of it
        (WRONG, "1", "0.900", TEXTS[5], "d"),
        (RIGHT, "2", "0.500", TEXTS[1], "b"),
        (WRONG, "3", "0.100", TEXTS[0], "a"),
    ]
    for row in found:
        np.testing.assert_array_equal(row.frames, THUMBNAILS[row.clip_id])
    assert clips_of_strip(evaluation, 1) == ["b", "d", "b", "a"]


def test_empty_places_are_left_out_and_ties_have_fractional_ranks(evaluation, rows):
    text_to_video(evaluation, TEXTS, 4, THUMBNAILS)
    assert described(rows[0][2])[1:] == [(RIGHT, "1", "0.750", TEXTS[4], "c"), (WRONG, "2", "0.250", TEXTS[0], "a")]
    assert clips_of_strip(evaluation, 4) == ["c", "c", "a"]
    text_to_video(evaluation, TEXTS, 5, THUMBNAILS, num_found=1)
    assert rows[1][1] == "d#5: its clip is found at rank 3.5 of 5"
    assert len(rows[1][2]) == 2


def test_undecoded_clip_is_a_miss(evaluation, rows):
    text_to_video(evaluation, TEXTS, 6, THUMBNAILS)
    video_to_text(evaluation, TEXTS, 4, THUMBNAILS)
    assert rows[0][1] == "e#6: its clip is not decoded: a miss"
    assert len(rows[0][2][0].frames) == 0
    assert rows[1][1] == "its captions are not decoded: a miss"
    assert described(rows[1][2]) == [(GIVEN, "the clip", TEXTS[6], "e")]


def test_clip_strip_has_its_captions_and_top_captions(evaluation, rows):
    video_to_text(evaluation, TEXTS, 1, THUMBNAILS)
    ((title, detail, found),) = rows
    own = " / ".join(TEXTS[1:4])
    assert (title, detail) == ("b", "its captions are found at rank 2 of 5")
    assert described(found) == [
        (GIVEN, "the clip", own, "b"),
        (WRONG, "1", "0.500", TEXTS[5], "d"),
        (RIGHT, "2", "0.250", own, "b (3 captions)"),
    ]
    assert [row.frames is None for row in found] == [False, True, True]


def test_frames_have_coloured_borders():
    rows = [StripRow(GIVEN, ("its clip",), "t", "c", FRAMES[0]), StripRow(WRONG, ("1", "0.1"), "t", "d", FRAMES[1, :2])]
    picture = draw_strip("title", "detail", [*rows, StripRow(RIGHT, ("2", "0.0"), "t", "e", FRAMES[2])])
    assert picture.shape[1] == 650
    for row, colour, frames in zip(range(3), (GIVEN, WRONG, RIGHT), (FRAMES[0], FRAMES[1, :2], FRAMES[2]), strict=True):
        found = []
        for frame in frames:
            windows = np.lib.stride_tricks.sliding_window_view(picture[:, :, 0], (FRAME_SIZE, FRAME_SIZE))
            match = (windows[:, :, 0] == frame[0, :, 0]).all(-1) & (windows[:, :, -1] == frame[-1, :, 0]).all(-1)
            ((top, left),) = np.argwhere(match)
            block = picture[top : top + FRAME_SIZE, left : left + FRAME_SIZE]
            np.testing.assert_array_equal(block, frame)
            for y, x in ((top - 2, left + 5), (top + FRAME_SIZE + 1, left + 5), (top + 5, left - 2)):
                assert tuple(picture[y, x]) == colour
            found.append((top, left))
        assert len({top for top, _ in found}) == 1
        assert [left for _, left in found] == sorted(left for _, left in found), row


def test_clip_without_frames_differs_from_black_frames():
    black = draw_strip(
        "t", "d", [StripRow(GIVEN, ("1",), "t", "c", np.zeros((4, FRAME_SIZE, FRAME_SIZE, 3), np.uint8))]
    )
    none = draw_strip("t", "d", [StripRow(GIVEN, ("1",), "t", "c", FRAMES[0, :0])])
    assert none.shape == black.shape
    assert (black == 0).all(-1).sum() >= 4 * FRAME_SIZE**2
    assert (none == 0).all(-1).sum() == 0


@pytest.mark.parametrize("text", ["日本語 עברית 👨‍👩‍👧", "\ud800\x00\n\u2028", "x" * 9999, "word " * 999, ""])
def test_any_text_can_be_drawn(text):
    row = StripRow(RIGHT, ("1", "0.5"), text, text, FRAMES[0])
    picture = draw_strip(text, text, [row, replace(row, frames=None)])
    assert picture.shape[1] == 650
    assert picture.shape[0] < 320
