import numpy as np
import pytest

from waver.runs.inspection.matrix import similarity_matrix
from waver.runs.inspection.pictures import RIGHT, WRONG, colours


def place(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """(row, column) of the pixels of a colour."""
    return np.argwhere((picture == colour).all(-1))


def test_cells_are_coloured_and_row_maxima_framed():
    similarity = np.array([[0.9, 0.1, 0.2], [0.8, 0.3, -0.4], [0.0, 0.1, 0.7]], np.float32)
    picture = similarity_matrix(similarity)
    green, red = place(picture, RIGHT), place(picture, WRONG)
    # Rows 0 and 2 are right; row 1 finds clip 0. Cells are 40 pixels wide.
    assert sorted({tuple(p) for p in (green - green.min(0)) // 40}) == [(0, 0), (2, 2)]
    (top, left), (bottom, right) = red.min(0), red.max(0)
    assert (top - green[:, 0].min(), left - green[:, 1].min()) == (40, 0)
    assert (bottom - top, right - left) == (39, 39)
    top, left = green.min(0)
    expected = colours(similarity, -0.4, 0.9)
    for row, column in np.ndindex(3, 3):
        middle = picture[top + 40 * row + 20, left + 40 * column + 20]
        assert (middle == expected[row, column]).all()


@pytest.mark.parametrize("num", [1, 2, 64, 100])
def test_picture_size_is_bounded_for_any_number_of_pairs(num):
    similarity = np.random.default_rng(0).standard_normal((num, num)).astype(np.float32)
    picture = similarity_matrix(similarity)
    assert picture.dtype == np.uint8
    assert max(picture.shape) <= 760
    assert len(place(picture, RIGHT)) > 0 or (similarity.argmax(1) != np.arange(num)).all()
    np.testing.assert_array_equal(picture, similarity_matrix(similarity))


def test_equal_scores_are_drawn():
    assert similarity_matrix(np.zeros((3, 3), np.float32)).shape[2] == 3
