"""Compares an index with the videos to index: which windows to keep, which to add, and which to remove."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from waver.data.ledger import FileStamp, group_failures
from waver.search.index import IndexSettings, read_windows, thumbnail_path, window_id, write_windows
from waver.search.vectors import lost_windows
from waver.search.windows import VideoFile, VideosError
from waver.tools.names import abbreviate

_TRIED_AGAIN = ("timeout", "killed", "missing")
"""Statuses of windows that are tried again: the outcome may differ although the video has not changed."""

Row = dict[str, Any]
"""A window: a row of `WINDOWS_SCHEMA`."""


class Inventory:
    """The windows of an index while `waver index` updates it.

    It keeps the windows of videos that have not changed. It removes the windows of videos that have changed or are gone, and
    deletes their thumbnails. Videos that were indexed earlier and are not among `videos` stay as long as their files exist.

    Args:
        folder: folder of the index.
        settings: of the index.
        videos: all videos of the places to index.

    Attributes:
        num_forgotten: number of videos that are gone, and were removed.

    Raises:
        VideosError: if a video has the name of another video, which was indexed from another folder.
    """

    def __init__(self, folder: Path, settings: IndexSettings, videos: Sequence[VideoFile]):
        self._folder, self._windows = folder, settings.windows
        self._videos = {video.video_id: video for video in videos}
        with ThreadPoolExecutor(32) as pool:  # perhaps on a network disk: latency dominates
            stamps = pool.map(FileStamp.of, [video.path for video in videos])
            self._sources = {
                video.video_id: stamp.digest if stamp else "" for video, stamp in zip(videos, stamps, strict=True)
            }
        lost = lost_windows(folder, settings.embeddings)
        before = [row for row in read_windows(folder).to_pylist() if row["window_id"] not in lost]
        self._check_names(before)
        self._rows: dict[str, Row] = {row["window_id"]: row for row in before if self._stays(row)}
        gone = [row for row in before if row["window_id"] not in self._rows]
        kept = {row["video_id"] for row in self._rows.values()}
        self.num_forgotten = len({row["video_id"] for row in gone} - kept - self._videos.keys())
        for row in self._rows.values():
            if row["video_id"] in self._videos:  # the folder may have been moved
                row["path"] = str(self._videos[row["video_id"]].path)
        for row in gone:
            thumbnail_path(folder, row["window_id"], row["source"]).unlink(missing_ok=True)

    def _check_names(self, before: Sequence[Row]) -> None:
        """Checks that no video would replace another one of the same name, which was indexed from another folder."""
        taken = sorted({row["video_id"] for row in before if self._is_of_another_file(row)})
        if taken:
            there = next(row["path"] for row in before if row["video_id"] == taken[0])
            raise VideosError(
                f"{len(taken)} videos have the names of other videos that {self._folder} has from another folder "
                f"({abbreviate(taken)}; {there} still exists): name a folder that contains both, or choose another index "
                "(--to FOLDER)"
            )

    def _is_of_another_file(self, row: Row) -> bool:
        video, there = self._videos.get(row["video_id"]), Path(row["path"])
        if video is None or video.path == there or row["source"] == self._sources[row["video_id"]]:
            return False
        return there.exists() and video.path.exists() and not there.samefile(video.path)

    def _stays(self, row: Row) -> bool:
        """Returns whether a window that was indexed before is still valid."""
        if row["video_id"] not in self._videos:
            return Path(row["path"]).exists()
        segments, times = self._videos[row["video_id"]].segments, (row["start_s"], row["end_s"])
        is_asked = times in segments if segments else self._windows.has(*times)
        return is_asked and row["source"] == self._sources[row["video_id"]]

    def missing(self) -> Iterator[Row]:
        """Yields the windows that are not indexed yet, as far as they are known: see `later` for new videos."""
        first = self._windows.first()
        for video_id, video in self._videos.items():
            for times in video.segments or [first]:
                window = self._window(video_id, *times)
                if self._is_missing(window):
                    yield window
                else:
                    yield from self.later(self._rows[window["window_id"]])

    def later(self, row: Row) -> Iterator[Row]:
        """Yields the other windows of a video that are not indexed yet, once its first one tells how long the video is."""
        if row["status"] != "ok" or (row["start_s"], row["end_s"]) != self._windows.first():
            return
        if self._videos[row["video_id"]].segments:
            return
        for times in self._windows.later(row["video_s"]):
            window = self._window(row["video_id"], *times)
            if self._is_missing(window):
                yield window

    def _is_missing(self, window: Row) -> bool:
        """Returns whether a window is not indexed yet, or is to be tried again."""
        known = self._rows.get(window["window_id"])
        return known is None or known["status"] in _TRIED_AGAIN

    def _window(self, video_id: str, start_s: float | None, end_s: float | None) -> Row:
        return {
            "window_id": window_id(video_id, start_s, end_s),
            "video_id": video_id,
            "path": str(self._videos[video_id].path),
            "start_s": start_s,
            "end_s": end_s,
            "source": self._sources[video_id],
        }

    def add(self, row: Row) -> None:
        """Adds a window that was decoded or has failed, or replaces it."""
        self._rows[row["window_id"]] = row

    def write(self) -> None:
        """Replaces the table of windows of the index."""
        write_windows(self._folder, list(self._rows.values()))

    @property
    def found(self) -> list[Row]:
        """The windows that a search can return."""
        return [row for row in self._rows.values() if row["status"] == "ok"]

    @property
    def failures(self) -> dict[str, list[str]]:
        """`status: error` -> the windows that failed with it; the most frequent failure first."""
        failed = [row for row in self._rows.values() if row["status"] != "ok"]
        return group_failures((row["window_id"], row["status"], row["error"]) for row in failed)
