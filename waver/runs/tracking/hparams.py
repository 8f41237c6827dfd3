"""Writes a run's settings, best metrics and status for TensorBoard's HParams dashboard.

Observed with TensorBoard 2.21 and both of its loaders (checked by tests/runs/tracking/test_hparams.py):

- If any run declares an experiment, TensorBoard takes all columns from it and hides settings that only other runs have.
  Without one, it merges the settings of all runs, those that differ first, and shows the first five. So a run declares a
  session only.
- Metrics are then all scalars of the sessions in alphabetical order, each with its last value, and the first five are shown.
  So the best metrics so far are scalars named `0 best/...`; runs that have not finished have them too.
- The first start and the first end of a session count; later ones are ignored. So a resumed run stays one session, and its
  end must be written only after it has finished.
- A setting that is a number in one run and a string in another is a string in all; waver has no such setting.
- Runs of one group are one line, with the mean of their metrics and the settings of the first. So the seeds of a trial share
  a group, and their settings have no seed.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Literal

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from torch.utils.tensorboard import SummaryWriter

from waver.tools.section import flatten

Value = bool | int | float | str

BEST = "0 best/"
"""Prefix of the scalars that hold the best metrics so far."""
_COMPARED_SECTIONS = ("train", "loss", "knowledge", "similarity", "model", "video", "text")
"""Sections whose settings can all affect metrics."""
_COMPARED_KEYS = (
    "seed",
    "data.format",
    "data.split",
    "data.validation_fraction",
    "data.validation_seed",
    "vocabulary.min_count",
    "vocabulary.splits",
)
_NUMBERS = ("data.validation_fraction", "train.captions_per_clip", "loss.knowledge_temperature")
"""Numbers that may be null, which must not make them strings."""
_STATUS = {
    "finished": api_pb2.STATUS_SUCCESS,
    "failed": api_pb2.STATUS_FAILURE,
    "stopped": api_pb2.STATUS_UNKNOWN,
    "interrupted": api_pb2.STATUS_UNKNOWN,
}


def comparable_settings(settings: Mapping[str, Any]) -> dict[str, Value]:
    """Selects the settings that can affect metrics; leaves out paths and resources.

    Args:
        settings: configuration of the experiment, as its JSON object.

    Returns:
        Dotted key -> number, string or bool, see `hparam_value`.
    """
    flat = flatten(settings, whole=("model.backbone",))
    return {
        key: hparam_value(value)
        for key, value in flat.items()
        if (key.partition(".")[0] in _COMPARED_SECTIONS or key in _COMPARED_KEYS)
        and not (key in _NUMBERS and value is None)
    }


def write_hparams(writer: SummaryWriter, settings: Mapping[str, Value], *, start_s: float, group: str = "") -> None:
    """Adds a run to the HParams dashboard. A second call, by a resumed run, has no effect.

    Args:
        writer: event writer of the run.
        settings: from `comparable_settings`.
        start_s: Unix time of the start.
        group: name shared by runs that differ only in their seed; they are one line, with the mean of their metrics.
    """
    start = SessionStartInfo(start_time_secs=start_s, group_name=group)
    for key, value in settings.items():
        if group and key == "seed":
            continue
        kind = "bool" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"
        setattr(start.hparams[key], f"{kind}_value", value)
    _write(writer, metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))


def write_best(writer: SummaryWriter, step: int, metrics: Mapping[str, float]) -> None:
    """Writes the best metrics so far; the HParams dashboard shows those of the last call.

    Args:
        writer: event writer of the run.
        step: optimizer steps so far. Must not decrease between calls: TensorBoard would drop the earlier values.
        metrics: name -> value.
    """
    for name, value in metrics.items():
        writer.add_scalar(f"{BEST}{name.replace('/', ' ')}", value, step)


def write_session_end(
    writer: SummaryWriter,
    *,
    end_s: float,
    status: Literal["finished", "failed", "stopped", "interrupted"] = "finished",
) -> None:
    """Writes how a run ended. Only the first call counts, so call it for a run that will not resume.

    Args:
        writer: event writer of the run.
        end_s: Unix time of the end.
        status: how it ended. TensorBoard has no status for `stopped` and `interrupted`, and shows them as unknown.
    """
    end = SessionEndInfo(status=_STATUS[status], end_time_secs=end_s)
    _write(writer, metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))


def _write(writer: SummaryWriter, tag: str, content: HParamsPluginData) -> None:
    """Writes HParams data as the metadata of a summary without value, at step 0, which a resumed run never purges."""
    assert writer.file_writer is not None
    summary_metadata = metadata.create_summary_metadata(content)
    value = Summary.Value(tag=tag, metadata=summary_metadata, tensor=metadata.NULL_TENSOR)
    writer.file_writer.add_summary(Summary(value=[value]), global_step=0)


def hparam_value(value: Any) -> Value:
    """Converts a setting to a number, string or bool.

    None becomes `none`, a list its items joined by commas, an absolute path its file name, and a mapping (the architecture
    of a backbone) a hash.
    """
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return f"own-{hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]}"
    if isinstance(value, list | tuple):
        return ", ".join(str(hparam_value(item)) for item in value) or "none"
    if isinstance(value, str) and PurePath(value).is_absolute():
        return PurePath(value).name
    return value
