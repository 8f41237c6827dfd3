"""What a run is, in words and tables, for TensorBoard's text dashboard: pure functions that give Markdown.

The dashboard renders GitHub's tables and takes HTML as HTML (cleaned of scripts), so what comes from outside is escaped.
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

_SPLITS = ("train", "validation", "test")
_PARTS = {
    "backbone.clip.visual.": "backbone: visual tower",
    "backbone.clip.logit_scale": "logit scale",
    "backbone.": "backbone: text tower",
    "temporal.": "temporal aggregator",
    "fusion.": "knowledge fusion",
    "text_weights.": "interaction",
    "video_weights.": "interaction",
    "cross.": "interaction",
}
"""How a parameter's name begins -> its part of the student; the first that fits."""


def cell(value: Any) -> str:
    """A value as it stands in a cell of a table: nothing in it breaks the table, is taken for markup, or is run as HTML."""
    text = value if isinstance(value, str) else f"{value:,}" if type(value) is int else json.dumps(value, default=str)
    text = html.escape(" ".join(text.split()), quote=False)
    for character in "\\`*_[]|~":
        text = text.replace(character, f"&#{ord(character)};")
    return text


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; numbers stand on the right."""
    rows = [list(row) for row in rows]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    lines = [
        _line(cell(name) for name in header),
        _line("---:" if to_right else "---" for to_right in right),
        *(_line(cell(value) for value in row) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def config_text(settings: Mapping[str, Any]) -> str:
    """The configuration, a table for each section.

    Args:
        settings: of the experiment, section by section, as JSON holds them.
    """
    alone = {key: value for key, value in settings.items() if not isinstance(value, Mapping)}
    sections = {"experiment": alone} | {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    parts = [
        f"#### {cell(name)}\n\n{table(('setting', 'value'), ((key, value) for key, value in section.items()))}"
        for name, section in sections.items()
        if section
    ]
    return "\n".join(parts)


def command_text(arguments: Sequence[str]) -> str:
    """The command line, as a shell takes it; it stands as code, in which only a fence as long could end it."""
    line = shlex.join(arguments)
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in line).split()), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{line}\n{fence}\n"


def environment_text(environment: Mapping[str, Any]) -> str:
    """Versions, hardware and commit, without the command line.

    Args:
        environment: as environment.json holds it.
    """
    rows = [(key, _readable(key, value)) for key, value in environment.items() if key != "command"]
    return table(("", "value"), rows)


def data_text(
    captions: pa.Table,
    ledger: pa.Table,
    *,
    validation: str,
    knowledge: Mapping[str, Any] | None = None,
) -> str:
    """What a run learns from and is measured on.

    Args:
        captions: caption table, of all splits.
        ledger: of the clip store, a row a clip.
        validation: where the validation split comes from.
        knowledge: summary of the knowledge that is used; None for none.
    """
    ok = ledger["clip_id"].filter(pc.equal(ledger["status"], "ok"))
    rows = []
    for split in _SPLITS:
        part = captions.filter(pc.equal(captions["split"], split))
        clips = pc.unique(part["clip_id"])
        decoded = pc.sum(pc.is_in(clips, value_set=ok)).as_py() or 0
        rows.append((split, len(clips), part.num_rows, decoded, len(clips) - decoded))
    asked = ledger.filter(pc.is_in(ledger["clip_id"], value_set=pc.unique(captions["clip_id"])))
    reasons = Counter(status for status in asked["status"].to_pylist() if status != "ok")
    parts = [table(("split", "clips", "captions", "decoded", "not decoded"), rows)]
    parts.append(f"validation: {cell(validation)}\n")
    if reasons:
        parts.append(table(("not decoded because", "clips"), reasons.most_common()))
    if knowledge is None:
        parts.append("no knowledge is used\n")
    else:
        leaky = "**leaky: captions of validation or test are in the dictionary**" if knowledge["leaky"] else "not leaky"
        parts.append(f"knowledge ({leaky}):\n\n{table(('', 'value'), knowledge.items())}")
    return "\n".join(parts)


def parameter_counts(student: nn.Module) -> dict[str, tuple[int, int]]:
    """Parts of the student -> (trainable, frozen) numbers of parameters; parts without parameters are left out.

    Args:
        student: a `waver.model.student.Student`. It is known by the names of its parameters.
    """
    counts: dict[str, tuple[int, int]] = dict.fromkeys(_PARTS.values(), (0, 0))
    for name, parameter in student.named_parameters():
        part = next(part for start, part in _PARTS.items() if name.startswith(start))
        trainable, frozen = counts[part]
        number = parameter.numel()
        counts[part] = (trainable + number, frozen) if parameter.requires_grad else (trainable, frozen + number)
    return {part: (trainable, frozen) for part, (trainable, frozen) in counts.items() if trainable + frozen}


def model_text(student: nn.Module) -> str:
    """How many parameters each part of the student has, and how many of them learn.

    Args:
        student: a `waver.model.student.Student`, with what is frozen frozen already.
    """
    counts = parameter_counts(student)
    counts["total"] = tuple(map(sum, zip(*counts.values(), strict=True)))
    rows = ((part, trainable + frozen, trainable, frozen) for part, (trainable, frozen) in counts.items())
    return table(("part", "parameters", "trainable", "frozen"), rows)


def best_text(epoch: int, metrics: Mapping[str, float], *, num_epochs: int) -> str:
    """The best figures so far.

    Args:
        epoch: after which they were measured.
        metrics: `t2v/R@1` and so on.
        num_epochs: that have been evaluated.
    """
    columns = list(dict.fromkeys(name.rpartition("/")[2] for name in metrics))
    directions = list(dict.fromkeys(name.rpartition("/")[0] for name in metrics))
    rows = [
        (direction, *(round(metrics[f"{direction}/{column}"], 2) for column in columns))
        for direction in directions
        if all(f"{direction}/{column}" in metrics for column in columns)
    ]
    return f"after epoch {epoch}, the best of {num_epochs} so far\n\n{table(('', *columns), rows)}"


def _readable(key: str, value: Any) -> Any:
    if key.endswith("_bytes") and isinstance(value, int):
        return f"{value / 2**30:.1f} GiB"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return "unknown" if value is None else value or "none"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
