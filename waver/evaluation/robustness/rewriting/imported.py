"""Queries that people or models rewrote, read from a file that says who did it.

A line a rewrite, JSON:

    {"clip_id": "video7020", "caption_index": 0, "text": "somebody bakes a cake out of sugar paste", "style": "plain words",
     "provenance": {"by": "a model, its version", "how": "the prompt", "when": "2026-11-24", "checked_by": "two readers"}}

Fields:
    clip_id, caption_index: the caption that was rewritten, as the caption table numbers it.
    text: the caption in other words.
    style: a word or a few for the way it is written; the report has a row for each.
    provenance: `by`, the model or person who wrote the text. May also say `how` (the prompt or instruction), `when`, and
        `checked_by`, who read whether the text says what the caption says.
    caption (optional): the caption as it was given to whoever rewrote it. Where it stands it must be that caption: a table
        with captions in another order would be noticed.

A caption has at most one rewrite in each style. Not every caption needs one.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from waver.data.annotations.reading import Problems, is_text, read_jsonl, read_text

_REQUIRED = ("clip_id", "caption_index", "text", "style", "provenance")
_FIELDS = (*_REQUIRED, "caption")
_EXAMPLE = '{"clip_id": ..., "caption_index": 0, "text": ..., "style": ..., "provenance": {"by": ...}}'


@dataclass(frozen=True)
class Provenance:
    """Who wrote a rewrite, and how; None is what the file does not say."""

    by: str
    how: str | None = None
    when: str | None = None
    checked_by: str | None = None


@dataclass(frozen=True)
class ImportedRewrite:
    """A caption in other words, as a line of the file gives it."""

    clip_id: str
    caption_index: int
    text: str
    style: str
    provenance: Provenance


def read_rewrites(path: Path, captions: pa.Table) -> list[ImportedRewrite]:
    """Reads rewritten queries and checks them against the captions that they rewrite.

    Args:
        path: a JSONL file, as the text above describes it.
        captions: the references, of `CAPTIONS_SCHEMA`: those of the split that is evaluated, and no others.

    Returns:
        The rewrites in the order of the file.

    Raises:
        AnnotationError: with everything that is wrong, by kind, and the lines where it is.
    """
    problems = Problems()
    columns = (captions[name].to_pylist() for name in ("clip_id", "caption_index", "caption"))
    reference_of = {(clip_id, index): caption for clip_id, index, caption in zip(*columns, strict=True)}
    text = read_text(path, problems)
    rows = [] if text is None else read_jsonl(text, _EXAMPLE, problems)[1]
    if text is not None and not rows and not len(problems):
        problems.add("file without rewrites", f"write a line a rewrite: {_EXAMPLE}", path.name)

    clips = {clip_id for clip_id, _ in reference_of}
    rewrites: list[ImportedRewrite] = []
    line_of: dict[tuple[str, int, str], str] = {}
    for where, row in rows:
        rewrite = _parse(where, row, problems)
        if rewrite is None or not _is_of_the_split(where, rewrite, row.get("caption"), reference_of, clips, problems):
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
    """One line; None if something is wrong with it."""
    num_problems = len(problems)
    _check_names(where, row, _FIELDS, _REQUIRED, "field", problems)
    for name in ("clip_id", "text", "style"):
        _check_text(where, row, name, problems)
    index = row.get("caption_index")
    if "caption_index" in row and (not isinstance(index, int) or isinstance(index, bool) or index < 0):
        problems.add(
            "caption_index that is no number", "write 0, 1, ...: which caption of the clip", f"{where}: {index!r}"
        )
    if row.get("caption") is not None and not is_text(row["caption"]):
        problems.add("caption that is not text", "write the caption that was rewritten, or nothing", where)
    provenance = _parse_provenance(where, row.get("provenance"), problems) if "provenance" in row else None
    if provenance is None or len(problems) > num_problems:
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
            remedy = f"every line needs {', '.join(_REQUIRED)}, and provenance says `by` whom"
            problems.add(f"missing {kind} {name}", remedy, where)


def _check_text(where: str, row: Mapping[str, Any], name: str, problems: Problems) -> None:
    if name not in row:
        return
    value = row[name]
    if not is_text(value):
        problems.add(f"{name} that is not text", "write a string", f"{where}: {json.dumps(value)}")
    elif not value.strip():
        problems.add(f"empty {name}", "fill it in, or delete the line", where)


def _is_of_the_split(
    where: str,
    rewrite: ImportedRewrite,
    caption: str | None,
    reference_of: Mapping[tuple[str, int], str],
    clips: set[str],
    problems: Problems,
) -> bool:
    """Whether the caption is there that was rewritten, and the text is another."""
    reference = reference_of.get((rewrite.clip_id, rewrite.caption_index))
    what = f"{where}: {rewrite.clip_id}, caption {rewrite.caption_index}"
    if rewrite.clip_id not in clips:
        remedy = "rewrite captions of the split that is evaluated, and no others"
        problems.add("clip that is not of the split", remedy, f"{where}: {rewrite.clip_id}")
    elif reference is None:
        problems.add("caption that the clip does not have", "captions of a clip are counted from 0", what)
    elif caption is not None and caption.split() != reference.split():
        problems.add(
            "another caption than the one of the split", "rewrite it again from this split", f"{what}: {caption!r}"
        )
    elif rewrite.text == " ".join(reference.split()):
        problems.add("rewrite that is the caption itself", "change it, or delete the line", what)
    else:
        return True
    return False
