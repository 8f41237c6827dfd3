"""A data set's own files -> one table of captions (Arrow), a row a caption.

`load_msrvtt` reads MSR-VTT in its original files, `load_table` a user's own data. Everything that is wrong with a data
set comes in one `AnnotationError`: each kind of problem, its count, the first examples, and what to do about it.
"""

from waver.annotations.captions import CAPTIONS_SCHEMA, validation_source
from waver.annotations.msrvtt import load_msrvtt
from waver.annotations.reading import AnnotationError
from waver.annotations.table import load_table

__all__ = ["CAPTIONS_SCHEMA", "AnnotationError", "load_msrvtt", "load_table", "validation_source"]
