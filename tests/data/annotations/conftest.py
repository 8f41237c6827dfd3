"""What tests of several data sets share: folders of videos, splits that are published for a test, and the real files."""

import os
from pathlib import Path

import pytest

from waver.data.annotations import DATA_SETS
from waver.data.annotations.published import PublishedPart, PublishedSplit, split_digest

SHARED = Path(os.environ.get("WAVER_SHARED", Path(__file__).parents[3].parent / "shared"))


@pytest.fixture
def touch():
    """Makes empty files in a folder, and returns the folder."""

    def make(folder: Path, *names: str) -> Path:
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return folder

    return make


@pytest.fixture
def splits_of():
    """The clips (or videos) of each split of a caption table, in order."""

    def splits(table, key="clip_id"):
        videos = {}
        for row in table.to_pylist():
            videos.setdefault(row["split"], {})[row[key]] = None
        return {split: list(ids) for split, ids in videos.items()}

    return splits


@pytest.fixture
def publish(monkeypatch):
    """Makes {part: {clip: captions}} the published split of a data set, until the test ends."""

    def publish_parts(data_set, split, parts):
        published = {
            part: PublishedPart(len(clips), sum(map(len, clips.values())), split_digest(clips))
            for part, clips in parts.items()
        }
        splits = DATA_SETS[data_set].published_splits
        monkeypatch.setitem(splits, split, PublishedSplit(splits[split].protocol, published))

    return publish_parts


@pytest.fixture
def shared_annotations():
    """The folder of a data set's real files; skips where they are not."""

    def folder(data_set: str) -> Path:
        path = SHARED / "data/annotations" / data_set
        if not path.is_dir():
            pytest.skip(f"{path} is not there: set WAVER_SHARED")
        return path

    return folder
