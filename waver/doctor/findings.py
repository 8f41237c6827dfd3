"""What checks find, and how it is shown: lines for people, and JSON with everything in full."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from rich.text import Text

from waver.tools.object_store import ObjectStoreError

Made = TypeVar("Made")
Level = Literal["ok", "info", "warning", "error"]
CheckedStage = Literal["ingest", "match", "train"]
"""A stage of an experiment that `waver doctor` can check for."""
_STYLES: dict[Level, str] = {"ok": "green", "info": "cyan", "warning": "yellow", "error": "bold red"}
_EXAMPLES = 3


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    """error: what is asked for cannot start. warning: it can, and somebody should know."""
    check: str
    """What was looked at."""
    found: str
    remedy: str = ""
    """What to do; empty where nothing has to be done."""
    details: Any = None
    """All that `found` shortens, as JSON can hold it."""


def independently(name: str, check: Callable[..., Iterable[Finding]], *arguments: Any, **options: Any) -> list[Finding]:
    """What a check finds. Where it fails, that is a finding as well, beside those that it came to before."""
    findings = []
    try:
        findings.extend(check(*arguments, **options))
    except Exception as error:  # a check that fails must not hide what others find
        findings.append(_failed(name, error))
    return findings


def attempt(
    name: str, make: Callable[..., tuple[Made | None, list[Finding]]], *arguments: Any, **options: Any
) -> tuple[Made | None, list[Finding]]:
    """What other checks look at, and what there is to say of it; None where it cannot be had."""
    try:
        return make(*arguments, **options)
    except Exception as error:  # see above
        return None, [_failed(name, error)]


def _failed(name: str, error: Exception) -> Finding:
    if isinstance(error, ObjectStoreError):
        return Finding("error", name, str(error))
    message = " ".join(str(error).split()) or "without a message"
    remedy = "whether all is well here is not known; if the message does not tell what to mend, report it"
    return Finding("error", name, f"this check itself failed ({type(error).__name__}: {message})", remedy)


def can_start(findings: Iterable[Finding]) -> bool:
    """Whether nothing stands in the way."""
    return all(finding.level != "error" for finding in findings)


def findings_text(findings: Iterable[Finding]) -> Text:
    """A line a finding: level, what was looked at, what was found; below it, after an arrow, what to do.

    Lines are as long as they are: paths in them can be copied, and grep finds whole ones.
    """
    text = Text()
    for finding in findings:
        text.append(f"{finding.level:9}", style=_STYLES[finding.level])
        lines = f"{finding.check}: {finding.found}" + (f"\n-> {finding.remedy}" if finding.remedy else "")
        text.append(lines.replace("\n", "\n" + " " * 9) + "\n")
    return text


def summary(findings: Iterable[Finding]) -> str:
    """How many of each level there are."""
    counts = Counter(finding.level for finding in findings)
    names = {"error": "error", "warning": "warning", "info": "note", "ok": "ok"}
    return ", ".join(
        f"{counts[level]} {name}{'s' if counts[level] > 1 and level != 'ok' else ''}"
        for level, name in names.items()
        if counts[level]
    )


def as_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """All findings in full."""
    return [asdict(finding) for finding in findings]


def some(names: Iterable[str]) -> str:
    """The first of many names; the report has all of them."""
    names = list(names)
    return ", ".join(names[:_EXAMPLES]) + (f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else "")


def size(num_bytes: float | int) -> str:
    """Bytes as people read them."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 / 10 else f"{num_bytes / 2**20:.1f} MiB"
