"""Renders the world of the quickstart: videos, their captions, and a few deliberately broken files."""

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

from waver.quickstart.captions import STYLES, captions
from waver.quickstart.drawing import draw
from waver.quickstart.scenes import Scene, split_scenes
from waver.quickstart.video_files import encode, write_broken_file

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
