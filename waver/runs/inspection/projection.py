"""Writes captions and clips as points for TensorBoard's projector.

Observed behaviour of the projector (TensorBoard 2.21) that determines how the files are written:

- It reads `projector_config.pbtxt` from run folders, that is folders with events, and only when the list of runs changes. So
  the points have their own folder, whose event file, which makes it a run, is written last.
- It caches the vectors of the selected point set, and reads a file again when another set is selected. So there are two
  sets: selecting the other one and back shows the newest evaluation.
- It refuses paths outside the folder of the configuration.
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
    """Metadata of a point."""

    kind: str
    """`clip` or `caption`."""
    caption: str
    """The caption, or the first caption of the clip."""
    clip_id: str
    style: str
    """Writing style; empty if unknown."""


@dataclass(frozen=True)
class PointSet:
    """Points with their vectors and thumbnails. The thumbnail of a caption is that of its clip, with a border."""

    vectors: Float[np.ndarray, "n D"]
    points: tuple[Point, ...]
    thumbnails: UInt8[np.ndarray, "n s s 3"]


def one_vector(embeddings: Embeddings, *, end_token_only: bool) -> Float[Tensor, "M D"]:
    """Pools the tokens of each item to a vector of length 1.

    The vector is the weighted sum of the normalised tokens, with the weights that wti learned, or equal ones. So the dot
    product of two vectors is proportional to the weighted mean of all token-frame cosines; wti takes maxima instead.

    Args:
        embeddings: embeddings of captions or clips.
        end_token_only: whether to take the end token instead, for captions of an interaction that compares only that one
            (dp, xti).
    """
    if end_token_only:
        return F.normalize(last_token(embeddings.values, embeddings.mask), dim=-1)
    tokens = F.normalize(embeddings.values, dim=-1).masked_fill(~embeddings.mask[..., None], 0)
    weights = embeddings.weights.masked_fill(~embeddings.mask, 0)
    return F.normalize((tokens * weights[..., None].to(tokens.dtype)).sum(1), dim=-1)


def with_border(frames: UInt8[np.ndarray, "n s s 3"]) -> UInt8[np.ndarray, "n s s 3"]:
    """Draws the border that marks thumbnails of captions."""
    framed = frames.copy()
    for edge in (np.s_[:, :4], np.s_[:, -4:], np.s_[:, :, :4], np.s_[:, :, -4:]):
        framed[edge] = _BORDER
    return framed


def write_projection(folder: Path, point_sets: Mapping[str, PointSet]) -> None:
    """Writes the files of the projector; replaces those of an earlier evaluation.

    Args:
        folder: folder for these files only, inside the events folder of the run.
        point_sets: name -> points.
    """
    config = ProjectorConfig()
    for name, point_set in point_sets.items():
        assert len(point_set.vectors) == len(point_set.points) == len(point_set.thumbnails), (
            "one vector and one thumbnail per point"
        )
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
    # TensorBoard drops an empty cell at the end of a line.
    return "".join("\t".join(one_line(cell) or "-" for cell in row) + "\n" for row in rows)


def _sprite(thumbnails: UInt8[np.ndarray, "n s s 3"]) -> bytes:
    """Tiles thumbnails into one square PNG, row by row, as the projector expects."""
    num, size = thumbnails.shape[:2]
    columns = math.ceil(math.sqrt(num))
    sheet = np.zeros((columns * columns, size, size, 3), np.uint8)
    sheet[:num] = thumbnails
    sheet = sheet.reshape(columns, columns, size, size, 3).transpose(0, 2, 1, 3, 4)
    buffer = io.BytesIO()
    Image.fromarray(sheet.reshape(columns * size, columns * size, 3)).save(buffer, "PNG")
    return buffer.getvalue()
