"""Draws the frames of a scene of the quickstart's world: one moving shape, its trail, and a background."""

import math
import random

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from waver.quickstart.scenes import Scene

WIDTH, HEIGHT = 96, 72
NUM_FRAMES = (16, 20, 24)
_OVERSAMPLING = 3  # masks are drawn this many times as large and averaged, for smooth edges
_RGB = {
    "red": (225, 25, 25),
    "orange": (255, 130, 0),
    "yellow": (250, 225, 20),
    "green": (20, 160, 40),
    "cyan": (30, 220, 225),
    "blue": (30, 60, 235),
    "purple": (125, 30, 165),
    "pink": (255, 120, 190),
    # Not in the quickstart, which has eight colours and six shapes.
    "brown": (125, 75, 30),
    "lime": (150, 240, 60),
    "beige": (245, 220, 170),
    "maroon": (110, 10, 40),
}
_TRAIL = 8
"""Number of frames after which the trail of a shape has faded."""
_FADED = [[round(value * 0.5 * (1 - ago / (_TRAIL + 2))) for value in range(256)] for ago in range(_TRAIL + 1)]
"""Look-up tables of the fading: `_FADED[ago][value]` is the mask value `value` of `ago` frames before."""
_RADIUS = {"small": 0.19, "big": 0.28}  # relative to the height


def draw(scene: Scene) -> list[Image.Image]:
    """Returns the frames of a scene: RGB images of `WIDTH` x `HEIGHT` pixels.

    The shape leaves a trail that fades, so that a single frame shows the direction of the motion.
    """
    rng = random.Random(scene.seed)
    num_frames, tilt, drift, phase = rng.choice(NUM_FRAMES), rng.uniform(-0.15, 0.15), rng.uniform(-1, 1), rng.random()
    background, paint = _background(scene.background), Image.new("RGB", (WIDTH, HEIGHT), _RGB[scene.colour])
    masks = []
    for index in range(-_TRAIL, num_frames):  # negative: the trail in the first frame
        x, y, scale = _position(scene.motion, index / (num_frames - 1), drift, phase)
        masks.append(_mask(scene.shape, x, y, scale * _RADIUS[scene.size], tilt))
    frames = []
    for now in range(_TRAIL, len(masks)):
        mask = masks[now]
        for ago in range(2, _TRAIL + 1, 2):
            mask = ImageChops.lighter(mask, masks[now - ago].point(_FADED[ago]))
        frames.append(Image.composite(paint, background, mask))
    return frames


def _position(motion: str, time: float, drift: float, phase: float) -> tuple[float, float, float]:
    """Returns x and y of the centre of the shape, and its scale, at `time` (0 to 1 during the video).

    x and y are relative to the height of the frame, from its middle; y points down. The shape stays within the middle
    square of the frame, which a centre crop keeps.
    """
    along, across = 0.64 * (time - 0.5), 0.2 * drift
    angle = 2 * math.pi * (phase + time)
    turns = 0.6 * (abs((3 * time + phase) % 2 - 1) - 0.5)  # a triangular wave
    return {
        "left": (-along, across, 1.0),
        "right": (along, across, 1.0),
        "up": (across, -along, 1.0),
        "down": (across, along, 1.0),
        "round": (0.28 * math.cos(angle), 0.28 * math.sin(angle), 1.0),
        "zigzag": (along if drift > 0 else -along, turns, 1.0),
        "grow": (across, 0.4 * phase - 0.2, max(0.5 + time, 0.1)),
        "shrink": (across, 0.4 * phase - 0.2, 1.5 - time),
    }[motion]


def _mask(shape: str, x: float, y: float, radius: float, tilt: float) -> Image.Image:
    """Returns an image with the share of each pixel that the shape covers, from 0 to 255."""
    size = HEIGHT * _OVERSAMPLING
    mask = Image.new("L", (WIDTH * _OVERSAMPLING, size))
    centre_x, centre_y, radius = mask.width / 2 + x * size, size / 2 + y * size, radius * size
    pen = ImageDraw.Draw(mask)
    if shape in ("circle", "ring"):
        pen.circle((centre_x, centre_y), radius, fill=255)
        if shape == "ring":
            pen.circle((centre_x, centre_y), 0.5 * radius, fill=0)
    else:
        turn = complex(math.cos(tilt), math.sin(tilt)) * radius
        corners = [complex(centre_x, centre_y) + turn * corner for corner in _CORNERS[shape]]
        pen.polygon([(corner.real, corner.imag) for corner in corners], fill=255)
    return mask.reduce(_OVERSAMPLING)


def _star(num_points: int, *radii: float) -> list[complex]:
    """Returns the corners of a star, at the radii in turn, beginning at the top; y points down."""
    radii = radii * num_points
    step = 2 * math.pi / len(radii)
    return [radius * complex(math.sin(i * step), -math.cos(i * step)) for i, radius in enumerate(radii)]


def _steps(first: float, last: float) -> list[float]:
    """Returns 21 numbers at equal distances."""
    return [first + (last - first) * step / 20 for step in range(21)]


_CORNERS = {
    "square": [complex(x, y) for x, y in ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9))],
    "triangle": _star(3, 1.2),
    "star": _star(5, 1.25, 0.5),
    "cross": [
        corner * 1j**quarter
        for quarter in range(4)
        for corner in (complex(-0.3, -1.1), complex(0.3, -1.1), complex(0.3, -0.3))
    ],
    "diamond": [complex(x, y) for x, y in ((0, -1.25), (0.75, 0), (0, 1.25), (-0.75, 0))],
    "arrow": [
        complex(x, y)
        for x, y in ((0, -1.25), (0.9, -0.2), (0.35, -0.2), (0.35, 1.1), (-0.35, 1.1), (-0.35, -0.2), (-0.9, -0.2))
    ],
    "heart": [
        complex(
            1.15 * math.sin(angle) ** 3,
            -(13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)) / 14,
        )
        for angle in (2 * math.pi * corner / 40 for corner in range(40))
    ],
    "crescent": [
        *(1.15 * complex(math.cos(angle), math.sin(angle)) for angle in _steps(math.pi / 3, 5 * math.pi / 3)),
        *(0.58 + complex(math.cos(angle), math.sin(angle)) for angle in _steps(5 * math.pi / 3, math.pi / 3)),
    ],
}


def _background(name: str) -> Image.Image:
    row, column = np.indices((HEIGHT, WIDTH)) // 9
    grey = {
        "black": np.full((HEIGHT, WIDTH), 10),
        "white": np.full((HEIGHT, WIDTH), 245),
        "striped": np.where(column % 2, 90, 130),
        "checkered": np.where((row + column) % 2, 90, 130),
    }[name]
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
