"""Embeds decoded windows, and writes their embeddings to an index; runs in this process or in Ray actors."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from waver.config import ExperimentConfig
from waver.data.clip_store import ClipStore
from waver.data.embedding_store import EmbeddingSettings, write_items
from waver.search.index import thumbnail_path
from waver.search.model import Model
from waver.tools.files import atomic_write

_THUMBNAIL_QUALITY = 80


class WindowEmbedder:
    """Embeds blocks of windows, and writes their embeddings and thumbnails to an index.

    Args:
        checkpoint: checkpoint folder.
        config: its configuration.
        clips: clip store of the windows.
        index: folder of the index.
        settings: settings of the embeddings in the index.
        of_teacher: clip store of the same windows with the frames that the teacher reads; None if it reads the model's.
    """

    def __init__(
        self,
        checkpoint: Path,
        config: ExperimentConfig,
        clips: Path,
        index: Path,
        settings: EmbeddingSettings,
        of_teacher: Path | None = None,
    ):
        self._model, self._clips = Model(checkpoint, config), ClipStore(clips)
        self._of_teacher = ClipStore(of_teacher) if of_teacher else None
        self._index, self._settings = index, settings

    def __call__(self, block: pa.Table) -> int:
        """Embeds the windows of a block with columns `window_id` and `source`; returns their number."""
        windows, sources = block["window_id"].to_pylist(), block["source"].to_pylist()
        frames, num_frames = self._clips.read(windows)
        video = self._model.embed_frames(
            frames, num_frames, self._of_teacher.read(windows) if self._of_teacher else None
        )
        values = video.values.float().cpu().numpy()
        rows = zip(windows, sources, values, num_frames.tolist(), strict=True)
        items = [(window, source, of_window[:number]) for window, source, of_window, number in rows]
        for window, source, of_window, number in zip(windows, sources, frames, num_frames.tolist(), strict=True):
            self._write_thumbnail(thumbnail_path(self._index, window, source), of_window[number // 2])
        # Last: a window whose embedding is stored counts as done, also after an interruption.
        write_items(self._index / "embeddings", self._settings, items)
        return len(windows)

    def _write_thumbnail(self, path: Path, frame: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            Image.fromarray(frame).save(file, "JPEG", quality=_THUMBNAIL_QUALITY)
