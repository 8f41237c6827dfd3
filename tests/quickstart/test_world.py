import json
from collections import Counter
from pathlib import Path

import av
import decord
import numpy as np
import pytest

from waver.quickstart.captions import STYLES
from waver.quickstart.drawing import HEIGHT, NUM_FRAMES, WIDTH
from waver.quickstart.scenes import Scene
from waver.quickstart.video_files import FRAMES_PER_SECOND
from waver.quickstart.world import SEEN_STYLES, TRAIN_WORDINGS, UNSEEN_STYLES, render_world, styles_of

WORLD = {"num_train": 12, "num_validation": 3, "num_test": 5, "num_broken": 5, "seed": 7}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_world(tmp_path_factory.mktemp("world"), **WORLD)


def rows_of(table: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]


def split_of_videos(table: Path) -> dict[str, str]:
    return {row["video"]: row["split"] for row in rows_of(table)}


def frames_of(path: Path) -> np.ndarray:
    """Decodes all frames with PyAV; raises PyAV's exceptions if there is no video."""
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def is_broken(path: Path) -> bool:
    try:
        frames_of(path)
    except (av.error.InvalidDataError, IndexError):
        return True
    return False


def test_the_caption_table_has_every_clip_with_split_and_style(table):
    rows = rows_of(table)
    assert all(set(row) == {"video", "caption", "split", "style"} and all(row.values()) for row in rows)
    assert Counter(split_of_videos(table).values()) == {"train": 12, "validation": 3, "test": 5}
    assert {row["video"] for row in rows} == {f"videos/{path.name}" for path in (table.parent / "videos").iterdir()}


def test_every_style_is_either_seen_or_unseen():
    assert sorted(SEEN_STYLES + UNSEEN_STYLES) == sorted(STYLES)


def test_training_clips_have_one_style_and_unseen_styles_are_in_test_alone(table):
    for video, split in split_of_videos(table).items():
        rows = [row for row in rows_of(table) if row["video"] == video]
        styles = Counter(row["style"] for row in rows)
        if split == "train":
            ((style, count),) = styles.items()
            assert style in SEEN_STYLES
            assert count == TRAIN_WORDINGS == len({row["caption"] for row in rows})
        else:
            assert styles == Counter(SEEN_STYLES if split == "validation" else list(STYLES))


def test_seen_styles_are_equally_frequent_in_train_and_train_writers_is_respected(tmp_path):
    scenes = [Scene("red", "star", "left", "black", "big", seed) for seed in range(400)]
    shares = Counter(style for scene in scenes for style in styles_of(scene, "train"))
    assert all(70 < shares[style] < 130 for style in SEEN_STYLES)
    sizes = {"num_train": 2, "num_validation": 0, "num_test": 0, "num_broken": 0, "seed": 0}
    rows = rows_of(render_world(tmp_path, **sizes, train_writers=2))
    assert len(rows) == 2 * 2 * TRAIN_WORDINGS
    assert len({(row["video"], row["style"]) for row in rows}) == 4


@pytest.mark.slow
def test_files_are_h264_and_pyav_and_decord_read_all_frames(table):
    for video in split_of_videos(table):
        path = table.parent / video
        if is_broken(path):
            continue
        with av.open(path) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
            assert (stream.width, stream.height, stream.average_rate) == (WIDTH, HEIGHT, FRAMES_PER_SECOND)
        reader = decord.VideoReader(str(path))
        assert len(reader) in NUM_FRAMES
        assert reader.get_avg_fps() == FRAMES_PER_SECOND
        assert len(frames_of(path)) == len(reader)


def test_num_broken_files_are_broken_and_one_of_them_is_in_test(table):
    splits = split_of_videos(table)
    broken = [video for video in splits if is_broken(table.parent / video)]
    assert Counter(splits[video] for video in broken) == {"test": 1, "train": 4}
    for video in broken:
        with pytest.raises((RuntimeError, decord.DECORDError)):
            decord.VideoReader(str(table.parent / video))
    sound_only = [video for video in broken if has_sound(table.parent / video)]
    assert len(sound_only) == 1
    assert sum((table.parent / video).stat().st_size == 0 for video in broken) == 1


def has_sound(path: Path) -> bool:
    try:
        with av.open(path) as container:
            return len(list(container.decode(audio=0))) > 0
    except av.error.InvalidDataError:
        return False


@pytest.mark.slow
def test_the_same_settings_render_the_same_world(table, tmp_path):
    again = render_world(tmp_path, **WORLD)
    assert again.read_bytes() == table.read_bytes()
    for video in split_of_videos(table):
        if not is_broken(table.parent / video):
            np.testing.assert_array_equal(frames_of(again.parent / video), frames_of(table.parent / video))


def test_worlds_with_other_settings_share_no_clip_id(table, tmp_path):
    """A clip store identifies clips by their ids alone."""
    other = render_world(tmp_path, **WORLD | {"seed": 8})
    assert not split_of_videos(other).keys() & split_of_videos(table).keys()


def test_a_finished_world_is_reused_and_an_interrupted_one_is_rendered_again(tmp_path):
    small = {"num_train": 2, "num_validation": 1, "num_test": 1, "num_broken": 0, "seed": 0}
    calls: list[tuple[int, int]] = []

    def render(**changes: int) -> Path:
        calls.clear()
        return render_world(tmp_path, **small | changes, progress=lambda done, total: calls.append((done, total)))

    table = render()
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert render() == table
    assert calls == []

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_world(tmp_path, **small | {"seed": 1}, progress=interrupt)
    render(seed=1)
    assert len(calls) == 4
    render(num_broken=1)
    assert len(calls) == 4


def test_too_many_broken_clips_raise_value_error(tmp_path):
    with pytest.raises(ValueError, match="num_broken"):
        render_world(tmp_path, num_train=2, num_validation=2, num_test=2, num_broken=4, seed=0)
