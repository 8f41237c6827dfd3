"""The quickstart's world on disk: real H.264 files, their captions, and a few files that are deliberately broken."""

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
"""Training and validation clips are captioned in these alone."""
UNSEEN_STYLES = ("question", "synonyms", "poetic")
"""Only test clips are captioned in these too: known words in other sentences, and two styles with words of their own."""
TRAIN_WRITERS, TRAIN_WORDINGS = 1, 2
"""A training clip has so many writers, each of one seen style, and so many captions of each."""
WORLD = {"num_train": 640, "num_validation": 60, "num_test": 120, "num_broken": 5, "seed": 0}
"""The world of `waver quickstart`: the shipped backbone has seen none of its scenes of validation and test."""

# Part of what a world is made from: raise it when a change here makes other videos or captions.
_RENDERER = 2
_OVERSAMPLING = 3
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
"""Frames until nothing is left of it."""
_FADE = [[round(value * 0.5 * (1 - ago / (_TRAIL + 2))) for value in range(256)] for ago in range(_TRAIL + 1)]
"""For each number of frames ago, what remains of each of the 256 values of a mask."""
_RADIUS = {"small": 0.19, "big": 0.28}  # as a share of the height


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

    `videos/<id>.mp4` are the clips, `captions.jsonl` the table (video, caption, split, style; a row a caption), and
    `world.json`, written last, says what was rendered: without it, or with other numbers in it, everything is rendered
    again. Ids depend on all the numbers, so that nothing made from one world is ever taken for another's.

    Args:
        folder: is made if need be; files of other worlds in it are left alone.
        num_train, num_validation, num_test: clips of each split, broken ones included.
        num_broken: clips whose file cannot be decoded. The first is one of test, so that its gallery misses a clip; all
            others are of train.
        seed: another seed, another world.
        train_writers: of each training clip, in a style of `SEEN_STYLES` each.
        progress: is called with the number of clips written and of all clips.

    Returns:
        The path of `captions.jsonl`.

    Raises:
        ValueError: if there are not enough different scenes, or more broken files than clips that may be broken.
    """
    if num_broken > (most := num_train + min(num_test, 1)):
        raise ValueError(
            f"num_broken = {num_broken}: at most {most} clips may be broken, one of test and those of train"
        )
    sizes = {"num_train": num_train, "num_validation": num_validation, "num_test": num_test}
    asked = json.dumps(
        {"renderer": _RENDERER, **sizes, "num_broken": num_broken, "seed": seed, "train_writers": train_writers}
    )
    captions_path, done_path = folder / "captions.jsonl", folder / "world.json"
    if captions_path.is_file() and done_path.is_file() and done_path.read_text(encoding="utf-8") == asked:
        return captions_path
    done_path.unlink(missing_ok=True)
    (folder / "videos").mkdir(parents=True, exist_ok=True)

    splits = split_scenes(**sizes, seed=seed)
    clips = [(split, scene) for split in ("test", "train", "validation") for scene in splits[split]]
    broken = [0, *range(num_test, num_test + num_train)][:num_broken] if num_test else range(num_broken)
    rows = []
    for index, (split, scene) in enumerate(clips):
        path = folder / "videos" / f"{hashlib.sha256(f'{asked}/{index}'.encode()).hexdigest()[:10]}.mp4"
        write = _BREAK[broken.index(index) % len(_BREAK)] if index in broken else _encode_scene
        write(path, scene)
        rows += [{"video": f"videos/{path.name}", **row} for row in describe(scene, split, seed, train_writers)]
        if progress:
            progress(index + 1, len(clips))

    captions_path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done_path.write_text(asked, encoding="utf-8")
    return captions_path


def _encode_scene(path: Path, scene: Scene) -> None:
    encode(path, draw(scene))


def describe(scene: Scene, split: str, seed: int, train_writers: int = TRAIN_WRITERS) -> list[dict[str, str]]:
    """The rows (caption, split, style) of a scene's clip."""
    return [
        {"caption": text, "split": split, "style": style}
        for style in styles_of(scene, split, train_writers)
        for text in captions(scene, style, seed, TRAIN_WORDINGS if split == "train" else 1)
    ]


def styles_of(scene: Scene, split: str, train_writers: int = TRAIN_WRITERS) -> list[str]:
    """In which styles the scene is captioned: training knows a video from few writers, the test asks in every style."""
    if split == "train":
        return random.Random(f"styles/{scene}").sample(SEEN_STYLES, train_writers)
    return list(SEEN_STYLES if split == "validation" else STYLES)


def draw(scene: Scene) -> list[Image.Image]:
    """The frames of a scene, RGB, `WIDTH` x `HEIGHT`.

    The shape leaves a trail that fades, as on a slow camera: one frame alone shows where it comes from.
    """
    rng = random.Random(scene.seed)
    num_frames, tilt, drift, phase = rng.choice(NUM_FRAMES), rng.uniform(-0.15, 0.15), rng.uniform(-1, 1), rng.random()
    background, paint = _background(scene.background), Image.new("RGB", (WIDTH, HEIGHT), _RGB[scene.colour])
    masks = []
    for index in range(-_TRAIL, num_frames):  # what moves has moved before the video begins
        x, y, scale = _place(scene.motion, index / (num_frames - 1), drift, phase)
        masks.append(_mask(scene.shape, x, y, scale * _RADIUS[scene.size], tilt))
    frames = []
    for now in range(_TRAIL, len(masks)):
        mask = masks[now]
        for ago in range(2, _TRAIL + 1, 2):
            mask = ImageChops.lighter(mask, masks[now - ago].point(_FADE[ago]))
        frames.append(Image.composite(paint, background, mask))
    return frames


def encode(path: Path, frames: list[Image.Image]) -> None:
    """Writes frames as H.264 (yuv420p) in mp4, `FRAMES_PER_SECOND`; the index of the file comes last in it."""
    with av.open(path, "w") as container:
        # x264's macroblock tree gives other bytes in one run of thirty or so.
        options = {"preset": "veryfast", "crf": "20", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1  # more threads, other bytes
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def _place(motion: str, time: float, drift: float, phase: float) -> tuple[float, float, float]:
    """Centre (in heights, from the middle of the frame, y down) and scale of the shape at `time` in [0, 1].

    All stays in the middle square of the frame, the part that is left by a centre crop.
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
    """Coverage of each pixel by the shape; drawn larger and averaged, so that edges are smooth."""
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
    """Corners at the radii in turn, the first one on top; y points down."""
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


def _truncated(path: Path, scene: Scene) -> None:
    encode(path, draw(scene))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path, _: Scene) -> None:
    path.write_bytes(b"")


def _text(path: Path, _: Scene) -> None:
    path.write_text("This video is no longer available.\n" * 40)


def _sound_only(path: Path, _: Scene) -> None:
    rate = 16_000
    tone = (8_000 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)).astype(np.int16)
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


_BREAK: tuple[Callable[[Path, Scene], None], ...] = (_truncated, _empty, _text, _sound_only)
