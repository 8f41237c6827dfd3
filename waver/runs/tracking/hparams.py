"""What TensorBoard's HParams dashboard knows of a run: its settings at the start, the best figures so far, and its end.

Found out with TensorBoard 2.21, for both of its loaders (tests/tracking/test_hparams.py asks a real one again):

- Every run declares its own session and nobody an experiment: where one run does, TensorBoard takes the columns of all from
  it, and settings that only others have are not shown. Without, it joins the settings of all runs, and puts those that
  differ first: five are shown until more are ticked.
- Its metrics are then all scalars of the sessions, in alphabetical order, five of them shown; each with its last value. So
  the best figures so far are scalars called `0 best/...`, which come first, and a run that is not finished has them too.
- Of several declarations of one run the first counts, which makes a resumed run one session, but also keeps whatever end was
  told first. So only a run that is finished is told to have ended.
- A setting that is a number in one run and a word in another is words in all; none of ours is.
- Runs of one group are one line: the mean of their metrics, and the settings of whichever came first. So the seeds of a
  trial share a group, and do not say their seed.
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
"""Begins the names of the scalars that hold the best figures so far."""
_COMPARED = ("train", "loss", "knowledge", "similarity", "model", "video", "text")
"""Sections whose settings all count."""
_ALSO = (
    "seed",
    "data.format",
    "data.split",
    "data.validation_fraction",
    "data.validation_seed",
    "vocabulary.min_count",
    "vocabulary.splits",
)
_STATUS = {
    "finished": api_pb2.STATUS_SUCCESS,
    "failed": api_pb2.STATUS_FAILURE,
    "stopped": api_pb2.STATUS_UNKNOWN,
    "running": api_pb2.STATUS_RUNNING,
}


def comparable_settings(settings: Mapping[str, Any]) -> dict[str, Value]:
    """The settings of an experiment by which runs are compared: those that a figure may depend on, not places and speed.

    Args:
        settings: of the experiment, section by section, as JSON holds them.

    Returns:
        Dotted key -> number, word or truth value. A backbone of the user's own is called by a hash of its description, a
        file by its name, and what is unset `none`.
    """
    flat = flatten(settings, whole=("model.backbone",))
    return {key: plain(value) for key, value in flat.items() if key.partition(".")[0] in _COMPARED or key in _ALSO}


def write_hparams(writer: SummaryWriter, settings: Mapping[str, Value], *, start_s: float, group: str = "") -> None:
    """Declares a run: from now on it is a line of the HParams dashboard. A resumed run may do it again, to no effect.

    Args:
        writer: of the run's events.
        settings: as `comparable_settings` gives them.
        start_s: Unix time.
        group: runs of one group, which differ in their seed alone, are one line with the mean of their metrics.
    """
    start = SessionStartInfo(start_time_secs=start_s, group_name=group)
    for key, value in settings.items():
        if group and key == "seed":
            continue
        kind = "bool" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"
        setattr(start.hparams[key], f"{kind}_value", value)
    _write(writer, metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))


def write_best(writer: SummaryWriter, step: int, metrics: Mapping[str, float]) -> None:
    """Writes the best figures so far, after each evaluation; the last ones are the metrics of the HParams dashboard.

    Args:
        writer: of the run's events.
        step: optimizer steps so far. Never below that of an earlier call: TensorBoard would forget the earlier ones.
        metrics: name -> value.
    """
    for name, value in metrics.items():
        writer.add_scalar(f"{BEST}{name.replace('/', ' ')}", value, step)


def finish_hparams(
    writer: SummaryWriter,
    *,
    end_s: float,
    status: Literal["finished", "failed", "stopped", "running"] = "finished",
) -> None:
    """Says how a run ended. The first word counts for ever: of a run that may be resumed, say it only when it is finished.

    Args:
        writer: of the run's events.
        end_s: Unix time.
        status: what became of it. Of what was stopped TensorBoard has no word: its status is unknown.
    """
    end = SessionEndInfo(status=_STATUS[status], end_time_secs=end_s)
    _write(writer, metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))


def _write(writer: SummaryWriter, tag: str, content: HParamsPluginData) -> None:
    """HParams are metadata of a summary without value, at step 0, which no resuming takes back."""
    about = metadata.create_summary_metadata(content)
    value = Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)
    writer.file_writer.add_summary(Summary(value=[value]), global_step=0)


def plain(value: Any) -> Value:
    """A setting as a number, a word or a truth value, see `comparable_settings`."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return f"own-{hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]}"
    if isinstance(value, list | tuple):
        return ", ".join(str(plain(item)) for item in value) or "none"
    if isinstance(value, str) and PurePath(value).is_absolute():
        return PurePath(value).name
    return value
