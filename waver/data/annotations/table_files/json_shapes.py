"""Says what a JSON file is that does not hold one object a line, and how to make a table of it."""

import json
import re
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from waver.data.annotations.repair_commands import compact_command, json_lines_command
from waver.data.annotations.table_files.columns import REQUIRED, resolve_columns

_CLIP_ID = re.compile(r"[A-Za-z0-9_-]{11}_([0-9]{1,6})_[0-9]{1,6}")
"""Clips of MSVD and VATEX; in VATEX the numbers have six digits."""
_MAX_COLUMNS = 50
_SPLITS = ("train", "validation", "val", "test")
_OBJECTS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "{video: {timestamps, sentences}}, as of ActivityNet Captions",
        lambda value: isinstance(value, dict) and {"timestamps", "sentences"} <= value.keys(),
        "({'video': v, 'caption': c, 'start_s': s, 'end_s': e} for v, d in x.items() "
        "for (s, e), c in zip(d['timestamps'], d['sentences']))",
    ),
    (
        "{video: [objects]}",
        lambda value: isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value),
        "({'video': v, **c} for v, d in x.items() for c in d)",
    ),
    (
        "{video: [captions]}",
        lambda value: isinstance(value, list),
        "({'video': v, 'caption': c} for v, d in x.items() for c in d)",
    ),
    ("{video: caption}", lambda value: isinstance(value, str), "({'video': v, 'caption': c} for v, c in x.items())"),
    ("{video: object}", lambda value: isinstance(value, dict), "({'video': v, **d} for v, d in x.items())"),
)
"""Objects with a key for each video: what its values are, and the rows of a table."""


class Diagnosis(NamedTuple):
    """What a file is, and what to do."""

    kind: str
    remedy: str


def describe_json(text: str, path: Path) -> Diagnosis | None:
    """Describes a file that begins like JSON.

    Args:
        text: its content.
        path: its path, for the command that makes a table of it.

    Returns:
        What it is; None if it seems to be JSON Lines, with or without mistakes.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        return None
    except json.JSONDecodeError as error:
        return _describe_damaged(text, error, path)
    if isinstance(content, list):
        return _describe_list(content, path)
    return _describe_object(content, text, path) if isinstance(content, dict) else None


def published_data_set(data_format: str, name: str, path: Path) -> Diagnosis:
    """Returns that a file is one of a published data set, which `data.format` reads as it is."""
    folder = path.parent
    return Diagnosis(
        f"original file of {name}",
        f"use format: {data_format}, with data.annotations: {folder} (the folder of this file)",
    )


def _describe_damaged(text: str, error: json.JSONDecodeError, path: Path) -> Diagnosis | None:
    begins = text.strip()
    is_cut = error.msg.startswith("Unterminated string") or not text[error.pos :].strip()
    if is_cut and ("\n" in begins or begins.startswith("[")):
        return Diagnosis(f"JSON that ends in the middle, in line {error.lineno}", "copy or download it again")
    if begins.startswith("["):
        where = f"line {error.lineno}: {error.msg}"
        return Diagnosis(f"JSON array with a mistake ({where})", "correct it; then write one object a line")
    try:
        content, end = json.JSONDecoder().raw_decode(begins)
    except ValueError:
        return None
    if isinstance(content, dict) and "\n" in begins[:end] and begins[end:].lstrip().startswith("{"):
        return Diagnosis("JSON objects of several lines each", f"write each in one line: {compact_command(path)}")
    return None


def _describe_list(content: list[Any], path: Path) -> Diagnosis:
    rows = [row for row in content if isinstance(row, dict)]
    if rows and len(rows) == len(content):
        if {"videoID", "enCap"} <= rows[0].keys():
            return published_data_set("vatex", "VATEX", path)
        if {"video", "description", "times"} <= rows[0].keys():
            return published_data_set("didemo", "DiDeMo", path)
        return Diagnosis("JSON array", f"write one object a line: {json_lines_command(path, 'x')}")
    if content and all(isinstance(row, list) and len(row) == 2 for row in content):
        first = [str(value) for value in content[0]]
        is_header = sorted(first) == sorted(REQUIRED)
        names = first if is_header else list(REQUIRED)
        rows = f"(dict(zip({names!r}, row)) for row in x{'[1:]' if is_header else ''})"
        return Diagnosis("JSON array of arrays", f"write one object a line: {json_lines_command(path, rows)}")
    return Diagnosis("JSON array without objects", 'write {"video": ..., "caption": ...}, one object a line')


def _describe_object(content: Mapping[str, Any], text: str, path: Path) -> Diagnosis | None:
    if diagnosis := _describe_lists(content, path):
        return diagnosis
    values = list(content.values())
    if len(values) <= _MAX_COLUMNS and {*REQUIRED} <= {*resolve_columns(list(content)).values()}:  # a row
        if diagnosis := _describe_columns(content, path):
            return diagnosis
        if "\n" not in text.strip():
            return None
        return Diagnosis("JSON object of several lines", f"write each object in one line: {compact_command(path)}")
    if values and (match := _CLIP_ID.fullmatch(next(iter(content)))):
        return published_data_set(*(("vatex", "VATEX") if len(match[1]) == 6 else ("msvd", "MSVD")), path)
    if values and content.keys() <= {*_SPLITS} and all(isinstance(value, dict) for value in values):
        rows = "({'video': v, 'caption': c, 'split': s} for s, d in x.items() for v, e in d.items() for c in e)"
        is_known = all(isinstance(captions, list) for value in values for captions in value.values())
        make = json_lines_command(path, rows) if is_known else "with video, caption and split"
        return Diagnosis("JSON object {split: {video: ...}}", f"write one object a line: {make}")
    for what, is_it, rows in _OBJECTS:
        if len(values) > 1 and all(map(is_it, values)):
            return Diagnosis(f"JSON object {what}", f"write one object a line: {json_lines_command(path, rows)}")
    return None


def _describe_columns(content: Mapping[str, Any], path: Path) -> Diagnosis | None:
    """Describes an object with all values of each column, as pandas writes it by default."""
    for kind, values in ((list, "x.values()"), (dict, "(d.values() for d in x.values())")):
        if all(isinstance(value, kind) for value in content.values()):
            rows = json_lines_command(path, f"(dict(zip(x, r)) for r in zip(*{values}))")
            return Diagnosis("JSON object {column: values}", f"write one object a line: {rows}")
    return None


def _describe_lists(content: Mapping[str, Any], path: Path) -> Diagnosis | None:
    """Describes an object with lists of objects, such as {"videos": [...], "annotations": [...]}."""
    first_of: dict[str, dict[str, Any]] = {
        name: value[0]
        for name, value in content.items()
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
    }
    for name, id_key in (("sentences", "video_id"), ("annotations", "image_id")):
        row = first_of.get(name, {})
        if "caption" in row and re.fullmatch("video[0-9]{1,4}", str(row.get(id_key))):
            return published_data_set("msrvtt", "MSR-VTT", path)
    if not first_of or (len(first_of) == len(content) and any(re.search(r"\d", name) for name in first_of)):
        return None  # the latter: {video: [objects]}
    if all(name in _SPLITS for name in first_of):
        rows = json_lines_command(path, "({**row, 'split': s} for s, rows in x.items() for row in rows)")
        return Diagnosis("JSON object {split: [objects]}", f"write one object a line: {rows}")
    meant_of = {name: {*resolve_columns(list(row)).values()} for name, row in first_of.items()}
    best = max(first_of, key=lambda name: ("caption" in meant_of[name], len(content[name])))
    rows = _join(first_of, best) or f"x[{best!r}]"
    command = json_lines_command(path, rows)
    return Diagnosis(f"JSON object with the list {best!r}", f"write its objects one a line: {command}")


def _join(first_of: Mapping[str, Mapping[str, Any]], captions: str) -> str | None:
    """Returns the rows of a list of captions, with the names of files from another list, as in files of COCO's form.

    Args:
        first_of: name of each list -> its first object.
        captions: name of the list of captions.
    """
    for name, row in first_of.items():
        for file, id_key in product(("file_name", "video", "path"), ("image_id", "video_id")):
            if name != captions and {"id", file} <= row.keys() and {"caption", id_key} <= first_of[captions].keys():
                names = f"{{r['id']: r[{file!r}] for r in x[{name!r}]}}"
                row_of = f"{{'video': n[r[{id_key!r}]], 'caption': r['caption']}}"
                return f"(lambda n: [{row_of} for r in x[{captions!r}]])({names})"
    return None
