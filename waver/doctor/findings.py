"""Findings of checks, as text for people and as JSON with all details."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from rich.text import Text

from waver.tools.object_store import ObjectStoreError

Result = TypeVar("Result")
Level = Literal["ok", "info", "warning", "error"]
CheckedStage = Literal["ingest", "match", "train"]
"""A stage of an experiment that `waver doctor` can check for."""
_STYLES: dict[Level, str] = {"ok": "green", "info": "cyan", "warning": "yellow", "error": "bold red"}
_MAX_NAMES = 3


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    level: Level
    """error: the stage cannot start. warning: it can start, with consequences that the user should know."""
    check: str
    """What was checked."""
    found: str
    remedy: str = ""
    """What to do; empty if nothing has to be done."""
    details: Any = None
    """Everything that `found` abbreviates; can be written as JSON."""


def run_check(name: str, check: Callable[..., Iterable[Finding]], *arguments: Any, **options: Any) -> list[Finding]:
    """Returns the findings of a check; an exception becomes a finding after those that the check yielded before it."""
    findings = []
    try:
        findings.extend(check(*arguments, **options))
    except Exception as error:  # the other checks must still run
        findings.append(_failed(name, error))
    return findings


def load_checked(
    name: str, load: Callable[..., tuple[Result | None, list[Finding]]], *arguments: Any, **options: Any
) -> tuple[Result | None, list[Finding]]:
    """Calls a function that returns an object and findings; an exception becomes (None, a finding)."""
    try:
        return load(*arguments, **options)
    except Exception as error:  # as in run_check
        return None, [_failed(name, error)]


def _failed(name: str, error: Exception) -> Finding:
    if isinstance(error, ObjectStoreError):
        return Finding("error", name, str(error))
    message = " ".join(str(error).split()) or "without a message"
    remedy = (
        "nothing is known about this check; if the message does not say what to change, report it as a bug of waver"
    )
    return Finding("error", name, f"the check itself failed ({type(error).__name__}: {message})", remedy)


def can_start(findings: Iterable[Finding]) -> bool:
    """Returns whether no finding is an error."""
    return all(finding.level != "error" for finding in findings)


def findings_text(findings: Iterable[Finding]) -> Text:
    """Returns a line per finding (level, check, found), each followed by a line with an arrow and the remedy, if any.

    Lines are not wrapped, so that paths can be copied and grep finds whole lines.
    """
    text = Text()
    for finding in findings:
        text.append(f"{finding.level:9}", style=_STYLES[finding.level])
        lines = f"{finding.check}: {finding.found}" + (f"\n-> {finding.remedy}" if finding.remedy else "")
        text.append(lines.replace("\n", "\n" + " " * 9) + "\n")
    return text


def count_levels(findings: Iterable[Finding]) -> str:
    """Returns how many findings of each level there are, such as `2 errors, 1 ok`."""
    counts = Counter(finding.level for finding in findings)
    names = {"error": "error", "warning": "warning", "info": "note", "ok": "ok"}
    return ", ".join(
        f"{counts[level]} {name}{'s' if counts[level] > 1 and level != 'ok' else ''}"
        for level, name in names.items()
        if counts[level]
    )


def as_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Returns the findings as dicts for JSON."""
    return [asdict(finding) for finding in findings]


def abbreviate(names: Iterable[str]) -> str:
    """Joins names with commas; of more than three, the first three and the number of the others."""
    names = list(names)
    return ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")


def format_bytes(num_bytes: float | int) -> str:
    """Returns a number of bytes in MiB or GiB."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 / 10 else f"{num_bytes / 2**20:.1f} MiB"
