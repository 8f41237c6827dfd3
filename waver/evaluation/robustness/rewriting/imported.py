"""Reads rewritten captions, and who wrote them, from a JSONL file.

Each line is one rewrite:

    {"clip_id": "video7020", "caption_index": 0, "text": "somebody bakes a cake out of sugar paste", "style": "plain words",
     "provenance": {"by": "a model, its version", "how": "the prompt", "when": "2026-11-24", "checked_by": "two readers"}}

Fields:
    clip_id, caption_index: the caption that was rewritten, with its index in the caption table.
    text: the rewritten caption.
    style: name of the writing style; the report has one row per style.
    provenance: `by`, the model or person who wrote the text; optionally `how` (the prompt or instruction), `when`, and
        `checked_by`, who checked that the text has the meaning of the caption.
    caption (optional): the original caption. If given, it must equal the caption of the table, which detects a table with
        captions in another order.

A caption has at most one rewrite per style, and may have none.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from waver.data.annotations.reading import Problems, is_text, read_text
from waver.data.annotations.table_files.json_lines import read_jsonl

_REQUIRED = ("clip_id", "caption_index", "text", "style", "provenance")
_FIELDS = (*_REQUIRED, "caption")
_EXAMPLE = '{"clip_id": ..., "caption_index": 0, "text": ..., "style": ..., "provenance": {"by": ...}}'


@dataclass(frozen=True)
class Provenance:
    """Who wrote a rewrite, and how; None for fields that the file lacks."""

    by: str
    how: str | None = None
    when: str | None = None
    checked_by: str | None = None


@dataclass(frozen=True)
class ImportedRewrite:
    """One rewritten caption."""

    clip_id: str
    caption_index: int
    text: str
    style: str
    provenance: Provenance


def read_rewrites(path: Path, captions: pa.Table) -> list[ImportedRewrite]:
    """Reads rewritten queries and checks them against the captions that they rewrite.

    Args:
        path: JSONL file in the format of this module's docstring.
        captions: caption table with only the rows of the split that is evaluated.

    Returns:
        The rewrites, in the order of the file.

    Raises:
        AnnotationError: if the file has errors; lists all of them by kind, with their lines.
    """
    problems = Problems()
    columns = (captions[name].to_pylist() for name in ("clip_id", "caption_index", "caption"))
    reference_of = {(clip_id, index): caption for clip_id, index, caption in zip(*columns, strict=True)}
    text = read_text(path, problems)
    rows = [] if text is None else read_jsonl(text, _EXAMPLE, problems)[1]
    if text is not None and not rows and not len(problems):
        problems.add("file without rewrites", f"write one line per rewrite: {_EXAMPLE}", path.name)

    clips = {clip_id for clip_id, _ in reference_of}
    rewrites: list[ImportedRewrite] = []
    line_of: dict[tuple[str, int, str], str] = {}
    for where, row in rows:
        rewrite = _parse(where, row, problems)
        if rewrite is None or not _matches_split(where, rewrite, row.get("caption"), reference_of, clips, problems):
            continue
        key = (rewrite.clip_id, rewrite.caption_index, rewrite.style)
        if key in line_of:
            what = f"{where} and {line_of[key]}: {rewrite.clip_id}, caption {rewrite.caption_index}, {rewrite.style}"
            problems.add("caption rewritten twice in one style", "keep one, or give the other another style", what)
        line_of.setdefault(key, where)
        rewrites.append(rewrite)
    problems.raise_if_any(path)
    return rewrites


def _parse(where: str, row: Mapping[str, Any], problems: Problems) -> ImportedRewrite | None:
    """Parses one line; returns None if it has an error."""
    num_problems = len(problems)
    _check_names(where, row, _FIELDS, _REQUIRED, "field", problems)
    for name in ("clip_id", "text", "style"):
        _check_text(where, row, name, problems)
    index = row.get("caption_index")
    if "caption_index" in row and (not isinstance(index, int) or isinstance(index, bool) or index < 0):
        problems.add(
            "caption_index that is not a number", "write 0, 1, ...: which caption of the clip", f"{where}: {index!r}"
        )
    if row.get("caption") is not None and not is_text(row["caption"]):
        problems.add("caption that is not text", "write the caption that was rewritten, or nothing", where)
    provenance = _parse_provenance(where, row.get("provenance"), problems) if "provenance" in row else None
    if provenance is None or index is None or len(problems) > num_problems:
        return None
    return ImportedRewrite(row["clip_id"], index, " ".join(row["text"].split()), row["style"].strip(), provenance)


def _parse_provenance(where: str, value: Any, problems: Problems) -> Provenance | None:
    if not isinstance(value, dict):
        remedy = 'write {"by": ...}: the model or person who wrote the text'
        problems.add("provenance that is not a JSON object", remedy, f"{where}: {value!r}")
        return None
    names = tuple(Provenance.__dataclass_fields__)
    num_problems = len(problems)
    _check_names(where, value, names, ("by",), "field of provenance", problems)
    for name in names:
        if value.get(name) is not None or name == "by":
            _check_text(where, value, name, problems)
    return Provenance(**value) if len(problems) == num_problems else None


def _check_names(
    where: str,
    row: Mapping[str, Any],
    known: tuple[str, ...],
    required: tuple[str, ...],
    kind: str,
    problems: Problems,
) -> None:
    for name in row:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"{name!r} (did you mean {near[0]}?)" if near else repr(name)
            problems.add(f"unknown {kind}", f"known are {', '.join(known)}", f"{where}: {hint}")
    for name in required:
        if name not in row:
            remedy = f"every line needs {', '.join(_REQUIRED)}, and provenance needs `by`"
            problems.add(f"missing {kind} {name}", remedy, where)


def _check_text(where: str, row: Mapping[str, Any], name: str, problems: Problems) -> None:
    if name not in row:
        return
    value = row[name]
    if not is_text(value):
        problems.add(f"{name} that is not text", "write a string", f"{where}: {json.dumps(value)}")
    elif not value.strip():
        problems.add(f"empty {name}", "fill it in, or delete the line", where)


def _matches_split(
    where: str,
    rewrite: ImportedRewrite,
    caption: str | None,
    reference_of: Mapping[tuple[str, int], str],
    clips: set[str],
    problems: Problems,
) -> bool:
    """Checks that the original caption is in the split and that the rewrite differs from it."""
    reference = reference_of.get((rewrite.clip_id, rewrite.caption_index))
    what = f"{where}: {rewrite.clip_id}, caption {rewrite.caption_index}"
    if rewrite.clip_id not in clips:
        remedy = "rewrite only captions of the split that is evaluated"
        problems.add("clip that is not in the split", remedy, f"{where}: {rewrite.clip_id}")
    elif reference is None:
        problems.add("caption that the clip does not have", "caption indices start at 0", what)
    elif caption is not None and caption.split() != reference.split():
        problems.add(
            "caption that differs from that of the split", "rewrite the caption of this split", f"{what}: {caption!r}"
        )
    elif rewrite.text == " ".join(reference.split()):
        problems.add("rewrite that is the caption itself", "change it, or delete the line", what)
    else:
        return True
    return False
