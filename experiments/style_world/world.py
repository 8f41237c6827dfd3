"""The world of the experiment: 2,680 clips of moving shapes, and what ten writers say about each.

Colour, shape and motion make 960 triples, which the splits share out: no triple of test is in training. Test has a clip of
each of 520 triples in both sizes, so that a caption that names the size fits one clip of the gallery, and one that does not
fits two.
"""

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

from experiments.style_world.writers import COLOURS, MOTIONS, SHAPES, SIZES, VOCABULARIES, caption, writers_of
from waver.quickstart.drawing import draw
from waver.quickstart.scenes import BACKGROUNDS, Scene
from waver.quickstart.video_files import encode
from waver.tools.files import atomic_write

NUM_TRIPLES = {"test": 520, "validation": 60}
"""Split -> number of its triples of colour, shape and motion; train has all others."""
CLIPS_PER_TRIPLE = {"test": 2, "validation": 2, "train": 4}
TRAIN_WORDINGS = 2
"""Number of captions of a training clip by each writer."""


def split_scenes(seed: int = 0) -> dict[str, list[Scene]]:
    """Returns the scenes of each split."""
    rng = random.Random(f"style world/{seed}")
    triples = list(itertools.product(COLOURS, SHAPES, MOTIONS))
    rng.shuffle(triples)
    num_test, num_held_out = NUM_TRIPLES["test"], sum(NUM_TRIPLES.values())
    of_split = {
        "test": triples[:num_test],
        "validation": triples[num_test:num_held_out],
        "train": triples[num_held_out:],
    }
    return {
        split: [
            Scene(*triple, rng.choice(BACKGROUNDS), SIZES[number % len(SIZES)], seed=rng.getrandbits(32))
            for triple in chosen
            for number in range(CLIPS_PER_TRIPLE[split])
        ]
        for split, chosen in of_split.items()
    }


def caption_rows(scene: Scene, split: str, number: int) -> list[dict[str, str]]:
    """Returns the captions of a scene: in train two by each writer, else one by a writer of each vocabulary.

    Args:
        scene: what is described.
        split: of the scene.
        number: of the clip in its split, which chooses the writers: each describes half of the clips.
    """
    turns = range(TRAIN_WORDINGS if split == "train" else 1)
    names = [
        name
        for index, vocabulary in enumerate(VOCABULARIES)
        for name in _chosen(writers_of((vocabulary,)), split, (number // 2 + index) % 2)
    ]
    return [{"caption": caption(scene, name, turn), "split": split, "style": name} for name in names for turn in turns]


def _chosen(writers: tuple[str, ...], split: str, turn: int) -> tuple[str, ...]:
    return writers if split == "train" else (writers[turn],)


def render_world(folder: Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Writes the clips as `videos/<split>-<number>.mp4` and their captions as `captions.jsonl`, unless they are there.

    `captions.jsonl` is written last. A folder that has other captions than this version writes is written again.

    Args:
        folder: is created if necessary.
        progress: called after each clip with the number of clips written and the number of all clips.
    """
    captions = folder / "captions.jsonl"
    clips = [
        (f"videos/{split}-{number:04d}.mp4", scene, split, number)
        for split, scenes in split_scenes().items()
        for number, scene in enumerate(scenes)
    ]
    rows = [
        {"video": path, **row} for path, scene, split, number in clips for row in caption_rows(scene, split, number)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if captions.is_file() and captions.read_text(encoding="utf-8") == text:
        return
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    for done, (path, scene, *_) in enumerate(clips, 1):
        encode(folder / path, draw(scene))
        progress(done, len(clips))
    with atomic_write(captions) as file:
        file.write(text.encode())
