"""Reads comma- or tab-separated values, and goes on after a mistake, so that one reading finds all of them."""

import csv
import io
import re
from collections.abc import Iterator

from waver.data.annotations.reading import Problems, excerpt

_MAX_WRONG_QUOTES = 20
"""After so many a file is given up: each may make the rest of the file one field, which has to be read again."""
_LATE_QUOTE = re.compile(r'\s+"[^"]*')
_LATE_QUOTES = re.compile(r'\s+"[^"]*"\s*')
"""A quote after a blank, which is part of the field instead of standing around it: before a comma, and around a field."""
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{2,5}$")

Rows = list[tuple[str, dict[str, str]]]


def read_csv(text: str, problems: Problems, source: str = "", *, delimiter: str = ",") -> tuple[list[str], Rows]:
    """Reads delimited values with a header.

    Args:
        text: the content.
        problems: receives rows that cannot be parsed, and quotes that swallow the lines after them.
        source: name of the file, for messages about more than one file.
        delimiter: stands between two fields.

    Returns:
        The header; for every row, the place where it begins ("line 2" or "line 2 of <source>") and its values by column.
    """
    header: list[str] = []
    rows: Rows = []
    for line, values in _records(text, problems, source, delimiter):
        if not header:
            header = values
            continue
        name = "tab" if delimiter == "\t" else "comma"
        is_wrong = len(values) != len(header)
        late = _LATE_QUOTE if is_wrong else _LATE_QUOTES
        if any(map(late.fullmatch, values)):
            remedy = f"delete the blanks between the {name} and the quote, which else is part of the field"
            problems.add("quote after a blank", remedy, line)
        elif is_wrong:
            remedy = f"every row needs the {len(header)} fields of the header; put a field with a {name} in quotes"
            problems.add("row with a wrong number of fields", remedy, f"{line} ({len(values)})")
        else:
            rows.append((line, dict(zip(header, values, strict=True))))
    return header, rows


def _records(text: str, problems: Problems, source: str, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Yields the records that are not blank, each with the line where it begins; after a mistake, from the next line on."""
    stream, num_before, num_wrong = io.StringIO(text, newline=""), 0, 0
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    while True:
        position, number = stream.tell(), num_before + reader.line_num + 1
        line = f"line {number}" + (f" of {source}" if source else "")
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            wrong = _describe_error(str(error), has_quote='"' in text[position : stream.tell()])
        else:
            last = num_before + reader.line_num
            if last == number or not (wrong := _describe_swallowed(values, delimiter, last)):
                if len(values) > 1 or "".join(values).strip():
                    yield line, values
                continue
        stream.seek(position)
        kind, remedy, what = wrong
        problems.add(kind, remedy, f"{line}{what}: {excerpt(stream.readline().strip())}")
        num_wrong += 1
        if num_wrong >= _MAX_WRONG_QUOTES:
            problems.add("rest of a file that was not read", "correct the quotes first", f"from line {number + 1} on")
            return
        reader, num_before = csv.reader(stream, delimiter=delimiter, strict=True), number


def _describe_error(message: str, *, has_quote: bool) -> tuple[str, str, str]:
    """Returns kind, remedy and addition to the place of an error of `csv`."""
    if message.startswith(("unexpected end", "field larger")) and has_quote:
        return "quote that is never closed", 'close it, or write "" for a quote inside a field in quotes', ""
    if "expected after" in message:
        remedy = 'write "" for a quote inside a field in quotes ("he says ""hi"""); \\" is not understood'
        return "quote in the middle of a field", remedy, ""
    return "record that cannot be read", "correct it", f" ({message})"


def _describe_swallowed(values: list[str], delimiter: str, last_line: int) -> tuple[str, str, str] | None:
    """Returns kind, remedy and addition to the place of a quote that swallows rows; None for fields that hold none.

    A field with line breaks holds rows if one of its lines has a field like the name in another field of the record: with
    the same extension, or with the same letters around other digits.
    """
    for field in values:
        if "\n" in field or "\r" in field:
            names = {name_shape(other) for other in values if other is not field} - {None}
            cells = (cell.strip(' "') for line in re.split(r"[\r\n]+", field) for cell in line.split(delimiter)[:100])
            if any(name_shape(cell) in names for cell in cells):
                remedy = 'close it in its line, or write "" for a quote inside a field in quotes'
                return "quote that swallows rows", remedy, f", up to line {last_line}"
    return None


def name_shape(name: str) -> str | None:
    """Returns the extension of a name, or else its letters with 0 for all digits; None for other texts."""
    if suffix := _SUFFIX.search(name):
        return suffix[0].lower()
    is_name = not re.search(r"\s", name) and re.search(r"\d", name) and re.search(r"[^\W\d]", name)
    return re.sub(r"\d+", "0", name) if is_name else None
