"""Turns embeddings into the items of an export, each with a pooled vector."""

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
from torch import Tensor

from waver.model.embeddings import Embeddings
from waver.model.interaction import mean_frame, sentence
from waver.search.export.formats import Items, Part

Kind = Literal["texts", "videos"]
PART_SIZE = 1024
"""Items that are written at a time."""


def items_of(embeddings: Embeddings, names: pa.Table, kind: Kind) -> Items:
    """Returns the items of embeddings that are in memory.

    Args:
        embeddings: embeddings of all items.
        names: a row per item, see `Items.names`.
        kind: `texts` or `videos`: a text is pooled to its last token, a video to the mean of its frames.
    """
    length, width = embeddings.values.shape[1:]
    return streamed_items(lambda rows: embeddings[rows], names, kind, length, width)


def streamed_items(
    read: Callable[[slice], Embeddings], names: pa.Table, kind: Kind, num_tokens: int, width: int
) -> Items:
    """Returns items whose embeddings are read while they are written.

    Args:
        read: returns the embeddings of some consecutive rows.
        names, kind: see `items_of`.
        num_tokens: number of positions of each item.
        width: dimension of an embedding.
    """

    def parts() -> Iterator[Part]:
        for start in range(0, len(names), PART_SIZE):
            yield _part(read(slice(start, min(start + PART_SIZE, len(names)))), kind)

    return Items(names, num_tokens, width, parts())


def _part(embeddings: Embeddings, kind: Kind) -> Part:
    pooled = sentence(embeddings) if kind == "texts" else mean_frame(embeddings)
    mask = _array(embeddings.mask)
    values, weights = _array(embeddings.values), _array(embeddings.weights)
    return Part(np.where(mask[..., None], values, 0), mask, np.where(mask, weights, 0), _array(pooled))


def _array(tensor: Tensor) -> np.ndarray:
    array = tensor.cpu().numpy()
    return array if array.dtype == bool else array.astype(np.float32, copy=False)
