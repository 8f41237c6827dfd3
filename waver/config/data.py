"""The data sets that an experiment may name; experiments/DATASETS.md says which files each needs."""

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import Field

from waver.config.section import AnyPath, Section


class CommonData(Section):
    """What every data set needs."""

    annotations: AnyPath
    """Where the captions are: a folder, or with table one file."""
    videos: AnyPath
    """Folder of the video files, on a disk that every node of the cluster sees; subfolders are searched too."""
    allow_missing_videos: bool = False
    """False: a video that is not on disk is an error. True: it is decoded as `missing` and counts as a miss."""


class HeldOutData(CommonData):
    """A data set that may have no validation split of its own."""

    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """WorkerResources of training videos held out for choosing the model, where the data set has no validation split."""
    validation_seed: int = 0
    """Which videos are held out. Apart from `seed`, so that repeats of a run validate on the same videos."""


class MsrvttData(HeldOutData):
    """MSR-VTT in its original files: `MSRVTT_data.json` and the csv files of the split."""

    format: Literal["msrvtt"]
    split: Literal["9k", "7k", "full"] = "9k"
    """9k and 7k are tested on 1k-A (`MSRVTT_JSFUSION_test.csv`), full on the official 2,990."""


class MsvdData(CommonData):
    """MSVD in its original files: `captions_msvd.json` and three lists."""

    format: Literal["msvd"]
    split: Literal["official"] = "official"
    """1,200 clips to train, 100 to validate and 670 to test; all their captions are queries."""


class VatexData(CommonData):
    """VATEX in its original files: English captions and the lists of the split."""

    format: Literal["vatex"]
    split: Literal["hgr", "1k5"] = "hgr"
    """hgr is tested on the usual 1,500 clips of the official validation set, 1k5 on those of CLIP2Video."""


class DidemoData(CommonData):
    """DiDeMo in its original files: the descriptions of a video are one query, its first 31 seconds the clip."""

    format: Literal["didemo"]
    split: Literal["official"] = "official"
    """8,392 videos to train, 1,065 to validate and 1,004 to test."""
    allow_missing_captions: bool = False
    """True: the 30 videos of train and 3 of validation that the csv files of T-MASS lack are left out. False: they are an
    error; `train_data.json` and `val_data.json` have them."""


class TableData(HeldOutData):
    """The user's own data: one row a caption, in JSONL, CSV or Parquet."""

    format: Literal["table"]


AnyData = MsrvttData | MsvdData | VatexData | DidemoData | TableData

DATA_SETS: Mapping[str, type[CommonData]] = {
    get_args(data_set.model_fields["format"].annotation)[0]: data_set for data_set in get_args(AnyData)
}
"""`data.format` -> what may stand beside it."""
