"""Reads JSON Lines, and says of a line that is not JSON what it seems to be."""

import json
import re
from typing import Any

from waver.data.annotations.reading import Problems, excerpt

_LAST_COMMA = re.compile(r",\s*([}\]])")
_PYTHON = re.compile(r"\{\s*'[^']*'\s*:")
"""How an object begins in Python's notation."""


class _RepeatedKeyError(ValueError):
    """An object has a key twice, of which `json` would keep the last; its value is not read."""


def read_jsonl(text: str, example: str, problems: Problems) -> tuple[list[str], list[tuple[str, dict[str, Any]]]]:
    """Reads JSON Lines: one object per line.

    Args:
        text: the content.
        example: an example of a line, for messages.
        problems: receives lines that cannot be parsed.

    Returns:
        The keys of all objects; for every object, its place ("line 2") and the object.
    """
    if text.lstrip().startswith("["):
        problems.add("JSON array", "write one object a line, without brackets and commas around them", "line 1")
        return [], []
    rows: list[tuple[str, dict[str, Any]]] = []
    # str.splitlines would also split at characters that JSON allows inside a string (U+2028, U+0085).
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            kind, remedy, detail = _describe_error(line, error)
            problems.add(kind, remedy, f"line {number} ({detail})" if detail else f"line {number}")
            continue
        if isinstance(row, dict):
            rows.append((f"line {number}", row))
        else:
            problems.add("line that is not a JSON object", f"write {example}", f"line {number}")
    return list({column: None for _, row in rows for column in row}), rows


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [key for key, _ in pairs]
        raise _RepeatedKeyError(excerpt(next(key for key in content if names.count(key) > 1)))
    return content


def _describe_error(line: str, error: Exception) -> tuple[str, str, str]:
    """Returns the kind of a wrong line, its remedy, and what exactly is wrong, unless the kind says it."""
    message = getattr(error, "msg", str(error))
    if isinstance(error, _RepeatedKeyError):
        return "object with a key twice", "keep one of them, or write one caption a line", message
    line = line.strip()
    if line.endswith(",") and _is_json(line[:-1]):
        return "line that ends with a comma", "delete the commas at the ends of the lines", ""
    if _LAST_COMMA.search(line) and _is_json(_LAST_COMMA.sub(r"\1", line)):
        return "object with a comma after its last value", "delete the comma before the bracket", ""
    if _begins_with_object(line):
        return "line with more than one object", "write one object a line", ""
    if _PYTHON.match(line):
        return "line in Python's notation", "write JSON, with double quotes: json.dumps(row) in place of str(row)", ""
    if "control character" in message:
        return "line that is not JSON", r"write \t for a tab in a text, and \n for a line break", message
    return "line that is not JSON", "write one object a line", message


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _begins_with_object(line: str) -> bool:
    """Returns whether an object stands at the beginning, and another one after it."""
    try:
        content, end = json.JSONDecoder().raw_decode(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and line[end:].lstrip(" ,;").startswith("{")
