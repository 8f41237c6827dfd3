"""Renders the world of the quickstart: H.264 videos, their captions, and a few deliberately broken files."""

import hashlib
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageChops, ImageDraw

from waver.quickstart.captions import STYLES, captions
from waver.quickstart.scenes import Scene, split_scenes

WIDTH, HEIGHT = 96, 72
FRAMES_PER_SECOND = 8
NUM_FRAMES = (16, 20, 24)
SEEN_STYLES = ("plain", "terse", "wordy", "chatty")
"""Styles of all captions of training and validation clips."""
UNSEEN_STYLES = ("question", "synonyms", "poetic")
"""Further styles of captions of test clips: one with known words in new sentences, two with words of their own."""
TRAIN_WRITERS, TRAIN_WORDINGS = 1, 2
"""Number of writers of a training clip, each with one of the seen styles, and number of captions by each writer."""
WORLD = {"num_train": 640, "num_validation": 60, "num_test": 120, "num_broken": 5, "seed": 0}
"""The world of `waver quickstart`. The shipped backbone was pre-trained without its validation and test scenes."""

# Raise it whenever a change of the code changes videos or captions: it is part of the world's settings.
_RENDERER = 2
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
}
_TRAIL = 8
"""Number of frames after which the trail of a shape has faded."""
_FADED = [[round(value * 0.5 * (1 - ago / (_TRAIL + 2))) for value in range(256)] for ago in range(_TRAIL + 1)]
"""Look-up tables of the fading: `_FADED[ago][value]` is the mask value `value` of `ago` frames before."""
_RADIUS = {"small": 0.19, "big": 0.28}  # relative to the height


def render_world(
    folder: Path,
    *,
    num_train: int,
    num_validation: int,
    num_test: int,
    num_broken: int,
    seed: int,
    train_writers: int = TRAIN_WRITERS,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Renders the world into `folder`, unless it is already there.

    Writes the clips as `videos/<id>.mp4`, a caption table as `captions.jsonl` (video, caption, split, style; a row per
    caption), and at last the settings as `world.json`. If `world.json` is absent or has other settings, everything is
    rendered again. Ids depend on all settings, so that clips of two worlds never have the same id.

    Args:
        folder: is created if necessary; files of other worlds in it are kept.
        num_train, num_validation, num_test: clips of each split, including broken ones.
        num_broken: clips whose file cannot be decoded. The first one is in test, so that the gallery has a missing clip;
            all others are in train.
        seed: of the choice of scenes, captions and ids.
        train_writers: writers of each training clip, each with a style of `SEEN_STYLES`.
        progress: called after each clip with the number of clips written and the number of all clips.

    Returns:
        The path of `captions.jsonl`.

    Raises:
        ValueError: if there are not enough different scenes, or if `num_broken` exceeds the clips that may be broken.
    """
    broken = _broken_indices(num_broken, num_train, num_test)
    sizes = {"num_train": num_train, "num_validation": num_validation, "num_test": num_test}
    settings = json.dumps(
        {"renderer": _RENDERER, **sizes, "num_broken": num_broken, "seed": seed, "train_writers": train_writers}
    )
    captions_path, settings_path = folder / "captions.jsonl", folder / "world.json"
    if captions_path.is_file() and settings_path.is_file() and settings_path.read_text(encoding="utf-8") == settings:
        return captions_path
    settings_path.unlink(missing_ok=True)
    (folder / "videos").mkdir(parents=True, exist_ok=True)

    splits = split_scenes(**sizes, seed=seed)
    clips = [(split, scene) for split in ("test", "train", "validation") for scene in splits[split]]
    rows = []
    for index, (split, scene) in enumerate(clips):
        path = folder / "videos" / f"{hashlib.sha256(f'{settings}/{index}'.encode()).hexdigest()[:10]}.mp4"
        if index in broken:
            write_broken_file(path, scene, broken.index(index))
        else:
            encode(path, draw(scene))
        rows += [{"video": f"videos/{path.name}", **row} for row in caption_rows(scene, split, seed, train_writers)]
        if progress:
            progress(index + 1, len(clips))

    captions_path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings_path.write_text(settings, encoding="utf-8")
    return captions_path


def _broken_indices(num_broken: int, num_train: int, num_test: int) -> list[int]:
    """Returns which clips are broken, as indices of the clips of test followed by those of train."""
    candidates = [0, *range(num_test, num_test + num_train)] if num_test else list(range(num_train))
    if num_broken > len(candidates):
        raise ValueError(
            f"num_broken = {num_broken} is too many: with num_train = {num_train} and num_test = {num_test} at most "
            f"{len(candidates)} clips may be broken (all of train and one of test)"
        )
    return candidates[:num_broken]


def caption_rows(scene: Scene, split: str, seed: int, train_writers: int = TRAIN_WRITERS) -> list[dict[str, str]]:
    """Returns the rows (caption, split, style) of a scene in the caption table."""
    return [
        {"caption": text, "split": split, "style": style}
        for style in styles_of(scene, split, train_writers)
        for text in captions(scene, style, seed, TRAIN_WORDINGS if split == "train" else 1)
    ]


def styles_of(scene: Scene, split: str, train_writers: int = TRAIN_WRITERS) -> list[str]:
    """Returns the styles of the captions of a scene: few for training, the seen ones for validation, all for test."""
    if split == "train":
        return random.Random(f"styles/{scene}").sample(SEEN_STYLES, train_writers)
    return list(SEEN_STYLES if split == "validation" else STYLES)


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


def encode(path: Path, frames: list[Image.Image]) -> None:
    """Writes frames as an H.264 video (mp4, yuv420p, `FRAMES_PER_SECOND`), with the same bytes every time.

    The index of the file (`moov`) is at its end, so that a truncated file cannot be decoded.
    """
    with av.open(path, "w") as container:
        # With x264's macroblock tree about one run of thirty writes other bytes.
        options = {"preset": "veryfast", "crf": "20", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1  # the bytes depend on the number of threads
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


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


_CORNERS = {
    "square": [complex(x, y) for x, y in ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9))],
    "triangle": _star(3, 1.2),
    "star": _star(5, 1.25, 0.5),
    "cross": [
        corner * 1j**quarter
        for quarter in range(4)
        for corner in (complex(-0.3, -1.1), complex(0.3, -1.1), complex(0.3, -0.3))
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


def write_broken_file(path: Path, scene: Scene, kind: int) -> None:
    """Writes a file that cannot be decoded: truncated, empty, a text, or sound without video, by `kind` modulo 4."""
    (_write_truncated, _write_empty, _write_text, _write_sound)[kind % 4](path, scene)


def _write_truncated(path: Path, scene: Scene) -> None:
    encode(path, draw(scene))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _write_empty(path: Path, _: Scene) -> None:
    path.write_bytes(b"")


def _write_text(path: Path, _: Scene) -> None:
    path.write_text("This video is no longer available.\n" * 40)


def _write_sound(path: Path, _: Scene) -> None:
    rate = 16_000
    tone = (8_000 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)).astype(np.int16)
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
