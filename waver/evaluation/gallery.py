"""A split of a caption table as it is evaluated: its clips (the gallery) and its captions (the queries)."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Int
from torch import Tensor

from waver.evaluation.ranking import EvaluationError


@dataclass(frozen=True)
class Gallery:
    """Clips sorted by id, and captions sorted by clip and caption index."""

    clip_ids: tuple[str, ...]
    texts: tuple[str, ...]
    text_ids: tuple[str, ...]
    """`<clip_id>#<caption_index>` of each caption."""
    clip_of_text: Int[Tensor, " texts"]
    """Index, in clip_ids, of each caption's clip."""
    styles: np.ndarray
    """Writing style of each caption; the empty string if unknown."""


def build_gallery(captions: pa.Table, split: str) -> Gallery:
    """Selects and sorts the clips and captions of a split.

    Raises:
        EvaluationError: if the split has no captions.
    """
    rows = captions.filter(pc.equal(captions["split"], split))
    if rows.num_rows == 0:
        counts = {row["values"]: row["counts"] for row in captions["split"].value_counts().to_pylist()}
        raise EvaluationError(
            f"the {split} split has no captions; choose another one (--split): the data set has {counts}"
        )
    rows = rows.sort_by([("clip_id", "ascending"), ("caption_index", "ascending")])
    clip_ids, clip_of_text = np.unique(np.array(rows["clip_id"].to_pylist()), return_inverse=True)
    indices = rows["caption_index"].to_pylist()
    return Gallery(
        clip_ids=tuple(clip_ids.tolist()),
        texts=tuple(rows["caption"].to_pylist()),
        text_ids=tuple(f"{c}#{i}" for c, i in zip(rows["clip_id"].to_pylist(), indices, strict=True)),
        clip_of_text=torch.from_numpy(clip_of_text),
        styles=np.array(rows["style"].fill_null("").to_pylist(), dtype=object),
    )
