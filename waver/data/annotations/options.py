"""The settings that all data sets share; each data set adds its own in its module."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import pyarrow as pa
from pydantic import Field

from waver.data.annotations.published import PublishedSplit
from waver.tools.section import AnyPath, Section


class CommonData(Section):
    """The part of the section `data` that all data sets share."""

    annotations: AnyPath
    """Folder with the annotation files; with format table, one JSONL, CSV, TSV or Parquet file."""
    videos: AnyPath
    """Folder with the video files, which every node of the cluster can read; its subfolders are searched too."""
    allow_missing_videos: bool = False
    """false: a video without a file is an error. true: ingest records it as missing, and its queries count as misses."""
    clip_rule: ClassVar[str | None] = None
    """Names the rule that cuts clips out of videos, if clips are neither whole files nor segments in the annotations."""
    published_splits: ClassVar[Mapping[str, PublishedSplit]] = {}
    """`data.split` -> what is published of it; empty for a user's own data."""

    def load(self) -> pa.Table:
        """Reads the annotations.

        Returns:
            A table of `CAPTIONS_SCHEMA`, one row per caption.

        Raises:
            AnnotationError: with everything that is wrong.
        """
        raise NotImplementedError(f"{type(self).__name__}.load")


class HeldOutData(CommonData):
    """The settings of a data set that may have no validation split of its own."""

    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    """Share of the training videos to hold out for validation, if the data set has no validation split; null for 0.05, and
    for up to 0.2 if this gives 50 videos or fewer."""
    validation_seed: int = 0
    """Seed for choosing the videos to hold out; separate from `seed`, so that runs with other seeds use the same ones."""
