"""Formats configuration, data, environment and model of a run as Markdown for TensorBoard's text dashboard.

The dashboard renders GitHub-style tables and passes sanitised HTML through, so all values are escaped.
"""

import html
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from torch import nn

from waver.knowledge.control import control_text

_SPLITS = ("train", "validation", "test")
_PARTS = {
    "backbone.clip.visual.": "backbone: visual tower",
    "backbone.clip.logit_scale": "logit scale",
    "backbone.clip.logit_bias": "logit bias",
    "new_logit_bias": "logit bias",
    "backbone.": "backbone: text tower",
    "frame_norm.": "frame norm",
    "temporal.": "temporal aggregator",
    "fusion.": "knowledge fusion",
    "text_weights.": "interaction",
    "video_weights.": "interaction",
    "cross.": "interaction",
}
"""Prefix of a parameter's name -> part of the student; the first matching prefix counts."""


def escape_cell(value: Any) -> str:
    """Formats a value as one table cell, with Markdown and HTML escaped."""
    text = value if isinstance(value, str) else f"{value:,}" if type(value) is int else json.dumps(value, default=str)
    text = html.escape(" ".join(text.split()), quote=False)
    for character in "\\`*_[]|~":
        text = text.replace(character, f"&#{ord(character)};")
    return text


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Formats a table; columns of numbers are right-aligned."""
    rows = [list(row) for row in rows]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    lines = [
        _line(escape_cell(name) for name in header),
        _line("---:" if to_right else "---" for to_right in right),
        *(_line(escape_cell(value) for value in row) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def config_text(settings: Mapping[str, Any]) -> str:
    """Formats a configuration, one table per section.

    Args:
        settings: configuration of the experiment, as its JSON object.
    """
    top_level = {key: value for key, value in settings.items() if not isinstance(value, Mapping)}
    sections = {"experiment": top_level} | {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    parts = [
        f"#### {escape_cell(name)}\n\n{markdown_table(('setting', 'value'), section.items())}"
        for name, section in sections.items()
        if section
    ]
    return "\n".join(parts)


def command_text(arguments: Sequence[str]) -> str:
    """Formats a command line as a code block; its fence is longer than any run of backticks in the command."""
    line = shlex.join(arguments)
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in line).split()), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{line}\n{fence}\n"


def environment_text(environment: Mapping[str, Any]) -> str:
    """Formats the environment of a run, without its command line.

    Args:
        environment: content of environment.json.
    """
    rows = [(key, _readable(key, value)) for key, value in environment.items() if key != "command"]
    return markdown_table(("", "value"), rows)


def data_text(
    captions: pa.Table,
    ledger: pa.Table,
    *,
    validation: str,
    knowledge: Mapping[str, Any] | None = None,
) -> str:
    """Formats the data of a run: counts of clips and captions, failed clips, validation split and knowledge.

    Args:
        captions: caption table of all splits.
        ledger: ledger of the clip store.
        validation: origin of the validation split.
        knowledge: summary of the knowledge; None if the run uses none.
    """
    ok = ledger["clip_id"].filter(pc.equal(ledger["status"], "ok"))
    rows = []
    for split in _SPLITS:
        part = captions.filter(pc.equal(captions["split"], split))
        clips = pc.unique(part["clip_id"])
        decoded = pc.sum(pc.is_in(clips, value_set=ok)).as_py() or 0
        rows.append((split, len(clips), part.num_rows, decoded, len(clips) - decoded))
    attempted = ledger.filter(pc.is_in(ledger["clip_id"], value_set=pc.unique(captions["clip_id"])))
    reasons = Counter(status for status in attempted["status"].to_pylist() if status != "ok")
    parts = [markdown_table(("split", "clips", "captions", "decoded", "not decoded"), rows)]
    parts.append(f"validation: {escape_cell(validation)}\n")
    if reasons:
        parts.append(markdown_table(("not decoded because", "clips"), reasons.most_common()))
    if knowledge is None:
        parts.append("no knowledge is used\n")
    else:
        leaky = (
            "**leaky: contaminated by captions of validation or test; do not report results**"
            if knowledge["leaky"]
            else "not leaky"
        )
        if control := control_text(knowledge.get("control", "none")):
            leaky += f"; **{control}**"
        parts.append(f"knowledge ({leaky}):\n\n{markdown_table(('', 'value'), knowledge.items())}")
    return "\n".join(parts)


def parameter_counts(student: nn.Module) -> dict[str, tuple[int, int]]:
    """Counts the parameters of each part of the student.

    Args:
        student: a `waver.model.student.Student`.

    Returns:
        Part -> (trainable, frozen); parts without parameters are left out.
    """
    counts: dict[str, tuple[int, int]] = dict.fromkeys(_PARTS.values(), (0, 0))
    for name, parameter in student.named_parameters():
        part = next(part for prefix, part in _PARTS.items() if name.startswith(prefix))
        trainable, frozen = counts[part]
        number = parameter.numel()
        counts[part] = (trainable + number, frozen) if parameter.requires_grad else (trainable, frozen + number)
    return {part: (trainable, frozen) for part, (trainable, frozen) in counts.items() if trainable + frozen}


def model_text(student: nn.Module) -> str:
    """Formats the number of parameters of each part of the student, trainable and frozen.

    Args:
        student: a `waver.model.student.Student`, whose frozen parameters need no gradient.
    """
    counts = parameter_counts(student)
    trainable, frozen = map(sum, zip(*counts.values(), strict=True))
    counts["total"] = (trainable, frozen)
    rows = ((part, trainable + frozen, trainable, frozen) for part, (trainable, frozen) in counts.items())
    return markdown_table(("part", "parameters", "trainable", "frozen"), rows)


def origin_text(origin: Mapping[str, Any]) -> str:
    """Formats the origin of a model that waver did not train.

    Args:
        origin: content of origin.json.
    """
    rows = [(key, _readable(key, value)) for key, value in origin.items()]
    return markdown_table(("", "origin"), rows)


def best_text(epoch: int, metrics: Mapping[str, float], *, num_epochs: int, remarks: Sequence[str] = ()) -> str:
    """Formats the best validation metrics so far.

    Args:
        epoch: epoch of the best metrics.
        metrics: `t2v/R@1` and so on.
        num_epochs: number of evaluated epochs.
        remarks: sentences on how sure they are.
    """
    columns = list(dict.fromkeys(name.rpartition("/")[2] for name in metrics))
    directions = list(dict.fromkeys(name.rpartition("/")[0] for name in metrics))
    rows = [
        (direction, *(round(metrics[f"{direction}/{column}"], 2) for column in columns))
        for direction in directions
        if all(f"{direction}/{column}" in metrics for column in columns)
    ]
    table = markdown_table(("", *columns), rows)
    return "\n".join([f"after epoch {epoch}, the best of {num_epochs} so far\n", table, *map(escape_cell, remarks)])


def _readable(key: str, value: Any) -> Any:
    if key.endswith("_bytes") and isinstance(value, int):
        return f"{value / 2**30:.1f} GiB"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return "unknown" if value is None else value or "none"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
