"""A data set's own files -> one table of captions (Arrow), one row per caption.

A data set is one module: its section of the configuration (`MsrvttData`, ...), whose `load` reads the annotations. `AnyData`
lists them; a new data set adds its class to that line. `TableData` is a user's own data, the others are published data sets
in their original files, which experiments/DATASETS.md describes. Everything that is wrong with a data set comes in one
`AnnotationError`: each kind of problem, its count, the first examples, and the remedy.
"""

from collections.abc import Mapping
from typing import get_args

from waver.data.annotations.captions import CAPTIONS_SCHEMA, validation_source
from waver.data.annotations.didemo import DidemoData, load_didemo
from waver.data.annotations.msrvtt import MsrvttData, load_msrvtt
from waver.data.annotations.msvd import MsvdData, load_msvd
from waver.data.annotations.options import CommonData
from waver.data.annotations.published import PublishedSplit
from waver.data.annotations.reading import AnnotationError
from waver.data.annotations.table import TableData, load_table
from waver.data.annotations.vatex import VatexData, load_vatex

AnyData = MsrvttData | MsvdData | VatexData | DidemoData | TableData
"""All data sets."""
DATA_SETS: Mapping[str, type[CommonData]] = {
    get_args(data_set.model_fields["format"].annotation)[0]: data_set for data_set in get_args(AnyData)
}
"""`data.format` -> the section that it selects."""


def published_split(data_format: str, split: str | None) -> PublishedSplit | None:
    """Looks up what is published of a split.

    Args:
        data_format: `data.format`.
        split: `data.split`; None for a format without one.

    Returns:
        The published split; None for a user's own data.
    """
    return DATA_SETS[data_format].published_splits.get(split or "")


__all__ = [
    "CAPTIONS_SCHEMA",
    "DATA_SETS",
    "AnnotationError",
    "AnyData",
    "CommonData",
    "load_didemo",
    "load_msrvtt",
    "load_msvd",
    "load_table",
    "load_vatex",
    "published_split",
    "validation_source",
]
