"""A data set's own files -> one table of captions (Arrow), a row a caption.

`load_msrvtt`, `load_msvd`, `load_vatex` and `load_didemo` read published data sets in their original files, which
experiments/DATASETS.md describes; `load_table` reads a user's own data. Everything that is wrong with a data
set comes in one `AnnotationError`: each kind of problem, its count, the first examples, and what to do about it.
"""

from waver.data.annotations.captions import CAPTIONS_SCHEMA, validation_source
from waver.data.annotations.didemo import load_didemo
from waver.data.annotations.msrvtt import load_msrvtt
from waver.data.annotations.msvd import load_msvd
from waver.data.annotations.reading import AnnotationError
from waver.data.annotations.table import load_table
from waver.data.annotations.vatex import load_vatex

__all__ = [
    "CAPTIONS_SCHEMA",
    "AnnotationError",
    "load_didemo",
    "load_msrvtt",
    "load_msvd",
    "load_table",
    "load_vatex",
    "validation_source",
]
