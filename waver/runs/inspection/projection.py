"""Captions and clips as points of one space, for TensorBoard's projector.

What was learned of the projector (TensorBoard 2.21), and decides how its files are written:

- It looks for `projector_config.pbtxt` in the folders of runs, and a run is a folder with events. The file is read when the
  list of runs changes, and never again: so the points have a folder of their own, whose first event makes it a run when all
  other files are there.
- It keeps the vectors of the point set that was looked at last and reads a file again when another set is looked at: so
  there are two sets, and changing to the other one and back shows the newest evaluation.
- Paths that leave the folder of the configuration are refused.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from google.protobuf import text_format
from jaxtyping import Float, UInt8
from PIL import Image
from tensorboard.plugins.projector import ProjectorConfig
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch import Tensor

from waver.model.embeddings import Embeddings
from waver.model.interaction import last_token
from waver.runs.inspection.pictures import one_line
from waver.tools.files import atomic_write, write_text

_BORDER = (255, 150, 0)


@dataclass(frozen=True)
class Point:
    """What the projector tells of a point."""

    kind: str
    """`clip` or `caption`."""
    caption: str
    """Of a clip the first one."""
    clip_id: str
    style: str
    """Of writing; empty where there is none."""


@dataclass(frozen=True)
class PointSet:
    """Points with their thumbnails: of a caption its clip's, with a border."""

    vectors: Float[np.ndarray, "n D"]
    points: tuple[Point, ...]
    thumbnails: UInt8[np.ndarray, "n s s 3"]


def one_vector(embeddings: Embeddings, *, end_token_only: bool) -> Float[Tensor, "M D"]:
    """One vector of length 1 for each item, from its tokens.

    Tokens are normalised and added by their weights: those that wti learned, equal ones for the others. The scalar product
    of two sums is the mean of all cosines, weighted on both sides, which wti sharpens by taking maxima.

    Args:
        embeddings: of captions or clips.
        end_token_only: whether the vector is the end token, as for captions of an interaction that compares it alone
            (dp, xti).
    """
    if end_token_only:
        return F.normalize(last_token(embeddings.values, embeddings.mask), dim=-1)
    tokens = F.normalize(embeddings.values, dim=-1).masked_fill(~embeddings.mask[..., None], 0)
    weights = embeddings.weights.masked_fill(~embeddings.mask, 0)
    return F.normalize((tokens * weights[..., None].to(tokens.dtype)).sum(1), dim=-1)


def with_border(frames: UInt8[np.ndarray, "n s s 3"]) -> UInt8[np.ndarray, "n s s 3"]:
    """Thumbnails as they stand for captions."""
    framed = frames.copy()
    for edge in (np.s_[:, :4], np.s_[:, -4:], np.s_[:, :, :4], np.s_[:, :, -4:]):
        framed[edge] = _BORDER
    return framed


def write_projection(folder: Path, point_sets: Mapping[str, PointSet]) -> None:
    """Writes what the projector shows; an earlier evaluation in the folder is replaced.

    Args:
        folder: of its own, inside of the folder of events that TensorBoard is pointed at.
        point_sets: by name.
    """
    config = ProjectorConfig()
    for name, point_set in point_sets.items():
        assert len(point_set.vectors) == len(point_set.points) == len(point_set.thumbnails), "a row a point"
        lines = ("\t".join(f"{value:.5f}" for value in vector) for vector in point_set.vectors.tolist())
        write_text(folder / f"{name}.tsv", "".join(f"{line}\n" for line in lines))
        write_text(folder / f"{name}_metadata.tsv", _metadata(point_set.points))
        with atomic_write(folder / f"{name}.png") as file:
            file.write(_sprite(point_set.thumbnails))
        size = point_set.thumbnails.shape[1]
        embedding = config.embeddings.add(
            tensor_name=name, tensor_path=f"{name}.tsv", metadata_path=f"{name}_metadata.tsv"
        )
        embedding.sprite.image_path = f"{name}.png"
        embedding.sprite.single_image_dim.extend([size, size])
    write_text(folder / "projector_config.pbtxt", text_format.MessageToString(config))
    if not any(folder.glob("*tfevents*")):
        EventFileWriter(str(folder)).close()


def _metadata(points: Sequence[Point]) -> str:
    rows = [("kind", "caption", "clip", "style"), *((p.kind, p.caption, p.clip_id, p.style) for p in points)]
    # An empty cell at the end of a line is lost on the way.
    return "".join("\t".join(one_line(cell) or "-" for cell in row) + "\n" for row in rows)


def _sprite(thumbnails: UInt8[np.ndarray, "n s s 3"]) -> bytes:
    """All thumbnails in one square PNG, row by row, as the projector cuts it up again."""
    num, size = thumbnails.shape[:2]
    columns = math.ceil(math.sqrt(num))
    sheet = np.zeros((columns * columns, size, size, 3), np.uint8)
    sheet[:num] = thumbnails
    sheet = sheet.reshape(columns, columns, size, size, 3).transpose(0, 2, 1, 3, 4)
    buffer = io.BytesIO()
    Image.fromarray(sheet.reshape(columns * size, columns * size, 3)).save(buffer, "PNG")
    return buffer.getvalue()
