"""Reads and writes the folder of an index: the windows of videos, and their embeddings.

    manifest.json      the settings (`IndexSettings`), and whether the last indexing was finished
    windows.parquet    one row per window, WINDOWS_SCHEMA; windows that could not be decoded have rows too
    vectors/           the embeddings of all windows in one file (`waver.search.vectors`)
    candidates/        the FAISS index of an index with many windows (`waver.search.candidates`)
    embeddings/        an embedding store (`waver.data.embedding_store`): windows that are not in `vectors` yet
    thumbnails/        one JPEG per window
    calibration.json   the score below which probably nothing fits a query (`waver.search.calibration`)
    decoding/          the clip store of the windows that are being indexed; deleted when they are embedded
    decoding_teacher/  the same for a teacher that matches phrases and reads other frames

The source of a window is the digest of its video file. If a video changes, its windows get new embeddings under the new
digest, and nothing reads the old ones.
"""

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import waver
from waver.data.embedding_store import EmbeddingSettings
from waver.data.ledger import FileStamp
from waver.search.windows import Windows
from waver.tools.errors import WaverError
from waver.tools.files import atomic_write, read_manifest, write_json

WINDOWS_SCHEMA = pa.schema(
    {
        "window_id": pa.string(),
        "video_id": pa.string(),
        "path": pa.string(),
        "start_s": pa.float64(),
        "end_s": pa.float64(),
        "video_s": pa.float64(),
        "status": pa.string(),
        "error": pa.string(),
        "source": pa.string(),
    }
)
"""start_s, end_s: both null for the whole video, end_s alone null for a segment up to its end; video_s: length of the
video, null if it is not known; status, error: as in the ledger of a clip store; source: digest of the video file."""


class SearchError(WaverError):
    """An index is missing, damaged, or does not fit the request."""


@dataclass(frozen=True)
class IndexSettings:
    """The model and the settings that an index was made with."""

    checkpoint: str
    """Absolute path of the checkpoint."""
    weights: str
    """Digest of the checkpoint's weights."""
    windows: Windows
    embeddings: EmbeddingSettings


def checkpoint_digest(checkpoint: Path) -> str:
    """Returns a digest that identifies the weights of a checkpoint, without reading all of them.

    Raises:
        SearchError: if the checkpoint has no weights.
    """
    stamps = [FileStamp.of(path) for path in sorted(checkpoint.glob("*.safetensors"))]
    if not stamps:
        raise SearchError(f"{checkpoint} has no weights (*.safetensors): is it a complete checkpoint?")
    return hashlib.sha256(repr([stamp and stamp.digest for stamp in stamps]).encode()).hexdigest()[:16]


def create_index(folder: Path, settings: IndexSettings) -> None:
    """Creates an index, or checks that an existing one has the same settings.

    Raises:
        SearchError: if the index has another model or other windows.
    """
    if not (folder / "manifest.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_complete(folder, settings, complete=False)
    there, asked = (dataclasses.asdict(each) for each in (read_settings(folder), settings))
    different = [
        f"{name}: {there[name]} there, {asked[name]} requested" for name in asked if there[name] != asked[name]
    ]
    if different:
        raise SearchError(
            f"{folder} was made with another model or other windows ({'; '.join(different)}): choose another folder "
            "(--to FOLDER), or delete this one"
        )


def write_complete(folder: Path, settings: IndexSettings, *, complete: bool) -> None:
    """Writes the manifest; `complete` says whether the index has all windows that were requested."""
    content = {"waver": waver.__version__, "settings": dataclasses.asdict(settings), "complete": complete}
    write_json(folder / "manifest.json", content)


def read_settings(folder: Path) -> IndexSettings:
    """Reads the settings of an index.

    Raises:
        SearchError: if there is no index, or its manifest is damaged.
    """
    raw: dict[str, Any] = read_manifest(folder, what="index", command="waver index RUN VIDEOS", error=SearchError)
    try:
        settings = raw["settings"]
        return IndexSettings(
            settings["checkpoint"],
            settings["weights"],
            Windows(**settings["windows"]),
            EmbeddingSettings(**settings["embeddings"]),
        )
    except (KeyError, TypeError) as error:
        raise SearchError(
            f"{folder / 'manifest.json'} cannot be read ({error}): delete the folder, and run `waver index RUN VIDEOS`"
        ) from error


def read_windows(folder: Path) -> pa.Table:
    """Returns all windows of an index, WINDOWS_SCHEMA; an empty table if it has none yet.

    Raises:
        SearchError: if the table is damaged.
    """
    path = folder / "windows.parquet"
    if not path.exists():
        return WINDOWS_SCHEMA.empty_table()
    try:
        return pq.read_table(path, schema=WINDOWS_SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise SearchError(f"{path} is damaged ({error}): delete it, and run `waver index` again") from error


def found_windows(folder: Path) -> pa.Table:
    """Returns the windows that a search can return: those that could be decoded.

    Raises:
        SearchError: if the table is damaged.
    """
    table = read_windows(folder)
    return table.filter(pc.equal(table["status"], "ok"))


def write_windows(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Replaces the table of windows; they are sorted by video and time."""
    # By the end as well: the order must not depend on whether indexing was stopped and resumed.
    ordered = sorted(
        rows,
        key=lambda row: (row["video_id"], row["start_s"] or 0.0, math.inf if row["end_s"] is None else row["end_s"]),
    )
    with atomic_write(folder / "windows.parquet") as file:
        pq.write_table(pa.Table.from_pylist(ordered, schema=WINDOWS_SCHEMA), file)


def window_id(video_id: str, start_s: float | None, end_s: float | None) -> str:
    """Returns the id of a window: `kitchen/0001.mp4@5-15`, or `kitchen/0001.mp4@5-` if it ends with the video.

    The id of a whole video is that of the video.
    """
    if start_s is None:
        return video_id
    return f"{video_id}@{start_s:.10g}-" + ("" if end_s is None else f"{end_s:.10g}")


def thumbnail_path(folder: Path, window: str, source: str) -> Path:
    """Returns the path of the thumbnail of a window in the index in `folder`."""
    name = hashlib.sha256(f"{window}\0{source}".encode()).hexdigest()[:24]
    return folder / "thumbnails" / name[:2] / f"{name}.jpg"
