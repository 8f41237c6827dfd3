"""A data set's own files -> one table of captions (Arrow), one row per caption.

A data set is one module: its section of the configuration (`MsrvttData`, ...), which says how its annotations are read
(`load`) and what is published of them (`published_splits`). `AnyData` lists all of them. `TableData` is a user's own data;
the others are published data sets in their original files, see experiments/DATASETS.md. One `AnnotationError` reports
everything that is wrong with a data set: each kind of problem with its count, its first examples and the remedy.
"""

from collections.abc import Mapping
from typing import get_args

from waver.data.annotations.captions import CAPTIONS_SCHEMA, validation_source
from waver.data.annotations.didemo import DidemoData
from waver.data.annotations.msrvtt import MsrvttData
from waver.data.annotations.msvd import MsvdData
from waver.data.annotations.options import CommonData
from waver.data.annotations.published import PublishedSplit
from waver.data.annotations.reading import AnnotationError
from waver.data.annotations.table import TableData
from waver.data.annotations.vatex import VatexData

AnyData = MsrvttData | MsvdData | VatexData | DidemoData | TableData
"""The sections of all data sets; a new data set is added here."""
DATA_SETS: Mapping[str, type[CommonData]] = {
    get_args(data_set.model_fields["format"].annotation)[0]: data_set for data_set in get_args(AnyData)
}
"""`data.format` -> section."""

__all__ = [
    "CAPTIONS_SCHEMA",
    "DATA_SETS",
    "AnnotationError",
    "AnyData",
    "CommonData",
    "published_split",
    "validation_source",
]


def published_split(data_format: str, split: str | None) -> PublishedSplit | None:
    """Looks up what is published of a split.

    Args:
        data_format: `data.format`.
        split: `data.split`; None for a format without one.

    Returns:
        The published split; None for a user's own data.
    """
    return DATA_SETS[data_format].published_splits.get(split or "")
