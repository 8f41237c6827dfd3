"""Commands that write a table anew, for messages: whoever pastes one in a shell gets the new file beside the old one."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path


def iconv_command(path: Path, encoding: str) -> str:
    """Returns the command that converts a text file to UTF-8."""
    if path.suffix == ".gz":
        unpack = f"gunzip -c {shlex.quote(str(path))} | iconv -f {encoding} -t UTF-8"
        return f"{unpack} > {_beside(path, 'utf-8')}"
    return f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > {_beside(path, 'utf-8')}"


def json_lines_command(path: Path, rows: str) -> str:
    """Returns the command that writes JSON Lines from a JSON file.

    Args:
        path: the file, plain or `.gz`.
        rows: Python expression of the rows (dicts); `x` is the content of the file.
    """
    opened = "gzip.open(a, 'rt', encoding='utf-8-sig')" if path.suffix == ".gz" else "open(a, encoding='utf-8-sig')"
    code = (
        f"import {'gzip, ' if path.suffix == '.gz' else ''}json, sys; _, a, b = sys.argv; x = json.load({opened}); "
        f"open(b, 'w').writelines(json.dumps(row) + '\\n' for row in {rows})"
    )
    return _python(code, path, _beside(path, "rows", ".jsonl"))


def compact_command(path: Path) -> str:
    """Returns the command that writes each of several JSON objects in one line."""
    read = "gunzip -c" if path.suffix == ".gz" else "cat"
    return f"{read} {shlex.quote(str(path))} | jq -c . > {_beside(path, 'rows', '.jsonl')}"


def separator_command(path: Path, separator: str, skipped_lines: int = 0) -> str:
    """Returns the command that writes a table with another separator as CSV, without its first lines."""
    read = f"a, sep='{separator}', dtype=str, keep_default_na=False" + (
        f", skiprows={skipped_lines}" if skipped_lines else ""
    )
    code = f"import pandas, sys; _, a, b = sys.argv; pandas.read_csv({read}).to_csv(b, index=False)"
    return _python(code, path, _beside(path, "commas", ".csv"))


def keep_columns_command(path: Path, columns: Sequence[str]) -> str:
    """Returns the command that writes a table with some of its columns only."""
    plain = _plain(path)
    module = "pandas"
    if plain.suffix == ".parquet":
        command = "pandas.read_parquet(a, columns=c).to_parquet(b, index=False)"
    elif plain.suffix in (".csv", ".tsv"):
        sep = ", sep='\\t'" if plain.suffix == ".tsv" else ""
        command = f"pandas.read_csv(a, dtype=str, keep_default_na=False{sep})[c].to_csv(b, index=False{sep})"
    else:  # not with pandas, which changes numbers
        module = "gzip, json" if path.suffix == ".gz" else "json"
        opened = "gzip.open(a, 'rt')" if path.suffix == ".gz" else "open(a)"
        row = "{k: v for k, v in json.loads(line).items() if k in c}"
        command = f"open(b, 'w').writelines(json.dumps({row}) + '\\n' for line in {opened})"
    return _python(f"import {module}, sys; _, a, b, *c = sys.argv; {command}", path, _beside(path, "columns"), *columns)


def explode_command(path: Path, column: str) -> str:
    """Returns the command that writes a Parquet file with one row for each value of a column that holds lists."""
    code = (
        "import pandas, sys; _, a, b, c = sys.argv; "
        "pandas.read_parquet(a).explode(c, ignore_index=True).to_parquet(b, index=False)"
    )
    return _python(code, path, _beside(path, "rows"), column)


def _plain(path: Path) -> Path:
    return path.with_suffix("") if path.suffix == ".gz" else path


def _beside(path: Path, addition: str, suffix: str = "") -> str:
    """Returns the new file: with the addition in its name if it would have the name of the old one, quoted for a shell."""
    plain = _plain(path)
    return shlex.quote(str(plain.with_name(f"{plain.stem}.{addition}{suffix or plain.suffix}")))


def _python(code: str, path: Path, target: str, *arguments: str) -> str:
    quoted = shlex.quote(code) if re.search('["$`!]', code) else f'"{code}"'
    return " ".join(("python -c", quoted, shlex.quote(str(path)), target, *map(shlex.quote, arguments)))
