"""What the sections of all data sets share in the configuration; each data set adds its own in its module."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import pyarrow as pa
from pydantic import Field

from waver.data.annotations.published import PublishedSplit
from waver.tools.section import AnyPath, Section


class CommonData(Section):
    """The section `data` of the configuration, as far as all data sets share it."""

    annotations: AnyPath
    """Where the captions are: a folder, or with table one file."""
    videos: AnyPath
    """Folder of the video files, on a disk that every node of the cluster sees; subfolders are searched too."""
    allow_missing_videos: bool = False
    """False: a video that is not on disk is an error. True: it is decoded as `missing` and counts as a miss."""
    clip_rule: ClassVar[str | None] = None
    """Which part of a video is the clip, if it is neither the whole file nor a segment that the annotations name."""
    published_splits: ClassVar[Mapping[str, PublishedSplit]] = {}
    """`data.split` -> what is published of it; empty for a user's own data."""

    def load(self) -> pa.Table:
        """Reads the annotations.

        Returns:
            A table of `CAPTIONS_SCHEMA`, one row per caption.

        Raises:
            AnnotationError: with everything that is wrong.
        """
        raise AssertionError(f"{type(self).__name__} must say how it is read")


class HeldOutData(CommonData):
    """A data set that may have no validation split of its own."""

    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Share of training videos held out for choosing the model, where the data set has no validation split."""
    validation_seed: int = 0
    """Which videos are held out. Apart from `seed`, so that repeats of a run validate on the same videos."""
