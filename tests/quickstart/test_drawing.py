import numpy as np
import pytest

from waver.quickstart.drawing import HEIGHT, WIDTH, draw
from waver.quickstart.scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, Scene


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_differs_from_every_background(colour, background):
    frame = np.asarray(draw(Scene(colour, "circle", "zigzag", background, "small", 3))[0]).astype(int)
    empty = np.asarray(draw(Scene(colour, "ring", "grow", background, "small", 3))[0]).astype(int)
    assert (np.abs(frame - empty).max(axis=2) > 60).sum() > 200


def centres_and_areas(motion: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y and number of the pixels of a red shape on black in each frame."""
    frames = np.stack([np.asarray(frame) for frame in draw(Scene("red", "circle", motion, "black", "small", seed))])
    masks = frames[..., 0] > 120
    rows, columns = np.indices((HEIGHT, WIDTH))
    areas = masks.sum((1, 2))
    return (masks * columns).sum((1, 2)) / areas, (masks * rows).sum((1, 2)) / areas, areas


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("motion", MOTIONS)
def test_shapes_move_as_the_captions_say(motion, seed):
    x, y, area = centres_and_areas(motion, seed)
    far = 0.4 * HEIGHT
    turns = {axis: int((np.diff(np.sign(np.diff(values))) != 0).sum()) for axis, values in (("x", x), ("y", y))}
    assert {
        "left": lambda: x[0] - x[-1] > far and np.ptp(y) < 1,
        "right": lambda: x[-1] - x[0] > far and np.ptp(y) < 1,
        "up": lambda: y[0] - y[-1] > far and np.ptp(x) < 1,
        "down": lambda: y[-1] - y[0] > far and np.ptp(x) < 1,
        "round": lambda: np.hypot(x[0] - x[-1], y[0] - y[-1]) < 2 and np.ptp(x) > far and np.ptp(y) > far,
        "zigzag": lambda: np.ptp(x) > far and turns["y"] >= 2,
        "grow": lambda: area[-1] > 4 * area[0] and np.ptp(x) < 1,
        "shrink": lambda: area[0] > 4 * area[-1] and np.ptp(x) < 1,
    }[motion]()


@pytest.mark.parametrize(("motion", "opposite"), [("left", "right"), ("up", "down"), ("grow", "shrink")])
def test_a_single_frame_shows_the_direction_of_the_motion(motion, opposite):
    """The trail distinguishes opposite motions."""
    there, back = (
        [np.asarray(frame).astype(int) for frame in draw(Scene("red", "circle", name, "black", "small", 3))]
        for name in (motion, opposite)
    )
    # In the middle of the video, both shapes have the same position and size.
    middle = len(there) // 2
    nearest = min((np.abs(there[middle] - frame).max(axis=2) > 40).sum() for frame in back)
    assert nearest > 30


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_look_different(shape):
    def last_frame(shape: str) -> np.ndarray:
        return np.asarray(draw(Scene("red", shape, "grow", "black", "big", 1))[-1]).astype(int)

    for other in set(SHAPES) - {shape}:
        assert (np.abs(last_frame(shape) - last_frame(other)).max(axis=2) > 100).sum() > 150
