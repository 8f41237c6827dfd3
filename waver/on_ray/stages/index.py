"""Indexes the videos of a user for search: decodes windows with Ray Data, and embeds them with the model of a run.

Windows are processed in chunks. The frames of a chunk are deleted once they are embedded, so an index keeps no frames.
After an interruption the same command continues. Later, it indexes only videos that are new or have changed.
"""

import contextlib
import logging
import shutil
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from waver.config import ExperimentConfig
from waver.data.clip_store import ClipStore
from waver.data.embedding_store import EmbeddingSettings, EmbeddingStore, create_embeddings
from waver.knowledge.store import Knowledge
from waver.on_ray.cluster.capacity import local_cpus
from waver.on_ray.cluster.connection import connect, runs_in_process
from waver.on_ray.stages.calibrate import calibrate_index
from waver.on_ray.stages.embed import choose_runner
from waver.on_ray.stages.ingest import decode_clips
from waver.runs.checkpoint import check_dictionary, check_weights
from waver.runs.inputs import store_settings
from waver.search.calibration import Calibration, Uncalibrated, read_calibration
from waver.search.embedder import WindowEmbedder
from waver.search.index import (
    IndexSettings,
    checkpoint_digest,
    create_index,
    write_complete,
)
from waver.search.inventory import Inventory, Row
from waver.search.refresh import refresh
from waver.search.windows import Windows, find_videos
from waver.tools.lock import hold_lock
from waver.tools.names import counted
from waver.tools.object_store import display_path
from waver.tools.progress import track_progress
from waver.training.build import build_student

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 2 * 2**30
"""Size of the decoded frames of a chunk of windows, at most."""
_WINDOWS_PER_BLOCK = 64
_FEW_WINDOWS = 32
"""Windows that one process decodes in about the time that Ray takes to start."""
_WRITING_FRACTION = 0.02
"""Share of the time that may be spent on writing the table of windows, which is written as a whole each time."""


@dataclass(frozen=True)
class IndexReport:
    """Outcome of an indexing."""

    folder: Path
    num_videos: int
    """Videos with at least one window that a search can return."""
    num_windows: int
    """Windows that a search can return."""
    num_embedded: int
    """Windows that this command embedded."""
    num_forgotten: int
    """Videos that are gone, and were removed from the index."""
    failures: dict[str, list[str]]
    """`status: error` -> the windows that failed with it; the most frequent failure first."""
    calibration: Calibration | Uncalibrated
    """The score below which probably nothing fits a query, or why there is none."""


def run_index(
    checkpoint: Path,
    config: ExperimentConfig,
    places: Sequence[Path],
    folder: Path,
    windows: Windows,
    *,
    exact_up_to: int | None = None,
    progress: bool = True,
) -> IndexReport:
    """Indexes the videos in some places that are new or have changed, and removes from the index videos that are gone.

    Videos of other places that were indexed earlier stay in the index as long as their files exist.

    Args:
        checkpoint: checkpoint of the model.
        config: its configuration; paths and resources may differ.
        places: folders of videos, videos, and tables of videos; see `waver.search.windows.find_videos`.
        folder: folder of the index; created if it does not exist.
        windows: how videos are cut into windows.
        exact_up_to: see `waver.search.refresh.refresh`.
        progress: whether to show progress on standard error.

    Raises:
        VideosError, AnnotationError: if the videos cannot be listed, or two have the same name.
        SearchError: if the index has another model or other windows.
        CheckpointError, KnowledgeError: if the model cannot be used.
        IngestError: if frames cannot be written.
        LockedError: if another process writes the index.
        ClusterTooSmallError: if the cluster is too small for the minimum of resources.workers.
    """
    videos = find_videos(places)
    check_weights(checkpoint, config)
    if config.informed_at_inference:
        check_dictionary(Knowledge(config.knowledge_store), checkpoint)
    folder, settings = folder.absolute(), _settings(checkpoint, config, windows)
    with hold_lock(folder, "indexing"):
        create_index(folder, settings)
        create_embeddings(folder / "embeddings", settings.embeddings)
        inventory = Inventory(folder, settings, videos)
        indexing = _Indexing(checkpoint, config, folder, settings, inventory, progress=progress)
        indexing.run()
        refresh(folder, exact_up_to=exact_up_to, progress=progress)
        if not isinstance(calibration := read_calibration(folder), Calibration):
            calibration = calibrate_index(checkpoint, config, folder)
    return indexing.report(calibration)


def _settings(checkpoint: Path, config: ExperimentConfig, windows: Windows) -> IndexSettings:
    with torch.device("meta"):
        width = build_student(config).backbone.width
    weights = checkpoint_digest(checkpoint)
    embeddings = EmbeddingSettings("windows", width, "fp32", weights, store_settings(config).key)
    return IndexSettings(str(checkpoint.absolute()), weights, windows, embeddings)


class _Indexing:
    """Brings an index up to date.

    Args:
        checkpoint, config: see `run_index`.
        folder: absolute path of the index.
        settings: of the index.
        inventory: its windows.
        progress: whether to show progress.
    """

    def __init__(
        self,
        checkpoint: Path,
        config: ExperimentConfig,
        folder: Path,
        settings: IndexSettings,
        inventory: Inventory,
        *,
        progress: bool,
    ):
        self._checkpoint, self._config, self._folder, self._settings = checkpoint, config, folder, settings
        self._inventory, self._progress = inventory, progress
        self._num_embedded, self._on_ray, self._next_write = 0, False, 0.0

    def run(self) -> None:
        """Decodes and embeds all windows that are missing."""
        queue = deque(self._inventory.missing())
        if not queue:
            self._write(complete=True)
            return
        self._write(complete=False)
        num_videos = len({window["video_id"] for window in queue})
        logger.info(f"indexing {counted(num_videos, 'video')} into {display_path(self._folder)}")
        read = [self._config, *([self._config.teacher] if self._decodes_for_teacher else [])]
        clip_bytes = sum(frames.max_frames * frames.size**2 * 3 for frames in map(store_settings, read))
        size = max(1, _CHUNK_BYTES // clip_bytes)
        try:
            with contextlib.ExitStack() as resources:
                while queue:
                    self._connect_for(len(queue), resources)
                    chunk = [queue.popleft() for _ in range(min(size, len(queue)))]
                    for row in self._index(chunk):
                        self._inventory.add(row)
                        queue.extend(self._inventory.later(row))
                    self._write(complete=not queue)
        except BaseException:  # also on Ctrl-C: what is done is kept
            self._inventory.write()
            raise

    def _connect_for(self, num_windows: int, resources: contextlib.ExitStack) -> None:
        """Connects to Ray, unless it is connected, or this process indexes the windows sooner than Ray starts."""
        if self._on_ray or (num_windows <= _FEW_WINDOWS and runs_in_process(self._config.resources)):
            return
        logger.info(resources.enter_context(connect(num_cpus=local_cpus(self._config))))
        self._on_ray = True

    def _index(self, chunk: list[Row]) -> list[Row]:
        """Decodes and embeds a chunk of windows; returns them with status, error and length of the video."""
        columns = {name: [row[name] for row in chunk] for name in ("path", "start_s", "end_s")}
        times = {name: pa.array(columns[name], pa.float64()) for name in ("start_s", "end_s")}
        clips = pa.table({"clip_id": [row["window_id"] for row in chunk], "path": columns["path"], **times})
        store, of_teacher = self._decode(clips, self._config, "decoding"), None
        outcomes = {row["clip_id"]: row for row in store.ledger.to_pylist()}
        if self._decodes_for_teacher:
            of_teacher = self._decode(clips, self._config.teacher, "decoding_teacher")
            failed = {row["clip_id"]: row for row in of_teacher.ledger.to_pylist() if row["status"] != "ok"}
            outcomes |= {clip_id: row for clip_id, row in failed.items() if outcomes[clip_id]["status"] == "ok"}
        self._embed([row for row in chunk if outcomes[row["window_id"]]["status"] == "ok"], store, of_teacher)
        for decoded in filter(None, (store, of_teacher)):
            shutil.rmtree(decoded.path)
        names = ("status", "error", "video_s")
        return [row | {name: outcomes[row["window_id"]][name] for name in names} for row in chunk]

    @property
    def _decodes_for_teacher(self) -> bool:
        """Whether a teacher matches the windows with phrases, and reads other frames than the model."""
        return self._config.informed_at_inference and self._config.teacher.clip_store != self._config.clip_store

    def _decode(self, clips: pa.Table, config: ExperimentConfig, name: str) -> ClipStore:
        """Decodes windows as an experiment reads them, into a folder of the index."""
        section, wait_s = self._config.ingest, self._config.resources.wait_s
        how = {"wait_s": wait_s, "in_process": not self._on_ray, "progress": self._progress}
        decode_clips(clips, self._folder / name, store_settings(config), section, **how)
        return ClipStore(self._folder / name)

    def _embed(self, windows: Sequence[Row], store: ClipStore, of_teacher: ClipStore | None) -> None:
        """Embeds those windows of a clip store that have no embedding yet."""
        sources: Mapping[str, str] = {row["window_id"]: row["source"] for row in windows}
        todo = EmbeddingStore(self._folder / "embeddings").missing(sources)
        if not todo:
            return
        blocks = [
            pa.table({"window_id": some, "source": [sources[window] for window in some]})
            for some in (todo[first : first + _WINDOWS_PER_BLOCK] for first in range(0, len(todo), _WINDOWS_PER_BLOCK))
        ]
        model = (self._checkpoint.absolute(), self._config)
        arguments = (*model, store.path, self._folder, self._settings.embeddings, of_teacher and of_teacher.path)
        shown = {"doing": "embedding", "unit": "windows", "total": len(todo), "enabled": self._progress}
        with closing(choose_runner(self._config)(WindowEmbedder, arguments, blocks)) as done:
            for number in track_progress(done, size=int, **shown):
                self._num_embedded += number

    def _write(self, *, complete: bool) -> None:
        """Writes the table of windows; while indexing, only so often that it takes a small part of the time."""
        started = time.monotonic()
        if not complete and started < self._next_write:
            return
        self._inventory.write()
        write_complete(self._folder, self._settings, complete=complete)
        finished = time.monotonic()
        self._next_write = finished + (finished - started) / _WRITING_FRACTION

    def report(self, calibration: Calibration | Uncalibrated) -> IndexReport:
        """Describes the index, and what this command did."""
        found = self._inventory.found
        return IndexReport(
            self._folder,
            len({row["video_id"] for row in found}),
            len(found),
            self._num_embedded,
            self._inventory.num_forgotten,
            self._inventory.failures,
            calibration,
        )
