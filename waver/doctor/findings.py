"""Findings of checks, as text for people and as JSON with all details."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from rich.text import Text

from waver.tools.errors import WaverError, user_message

Result = TypeVar("Result")
Level = Literal["ok", "info", "warning", "error"]
CheckedStage = Literal["ingest", "embed", "vocabulary", "match", "train"]
"""A stage of an experiment that `waver doctor` can check for."""
Stage = CheckedStage | Literal["tune"]
"""A stage that starts only if the checks find no errors; tune runs the others as far as their results are missing."""
_STYLES: dict[Level, str] = {"ok": "green", "info": "cyan", "warning": "yellow", "error": "bold red"}


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


class StartError(WaverError):
    """A stage cannot start; the message lists everything that prevents it."""


class Checks:
    """Runs checks one after the other and collects their findings.

    Args:
        announce: called with the name of each check before it runs.
        bugs_are_findings: whether an exception that is no error of the user becomes a finding too, so that the other checks
            still run; otherwise it is raised.
    """

    def __init__(self, announce: Callable[[str], object] = lambda name: None, *, bugs_are_findings: bool = False):
        self.findings: list[Finding] = []
        self._announce, self._bugs_are_findings = announce, bugs_are_findings

    def run(self, name: str, check: Callable[..., Iterable[Finding]], /, *arguments: Any, **options: Any) -> None:
        """Adds the findings of a check; an exception becomes a finding after those that the check yielded before it."""
        self._announce(name)
        try:
            self.findings.extend(check(*arguments, **options))
        except Exception as error:
            self.findings.append(self._failed(name, error))

    def load(
        self,
        name: str,
        load: Callable[..., tuple[Result | None, list[Finding]]],
        /,
        *arguments: Any,
        **options: Any,
    ) -> Result | None:
        """Adds the findings of a function that also returns an object; returns the object, None after an exception."""
        self._announce(name)
        try:
            result, findings = load(*arguments, **options)
        except Exception as error:
            result, findings = None, [self._failed(name, error)]
        self.findings.extend(findings)
        return result

    def _failed(self, name: str, error: Exception) -> Finding:
        if (told := user_message(error)) is not None:
            return Finding("error", name, told)
        if not self._bugs_are_findings:
            raise error
        message = " ".join(str(error).split()) or "without a message"
        remedy = (
            "nothing is known about this check; if the message does not say what to change, report it as a bug of waver"
        )
        return Finding("error", name, f"the check itself failed ({type(error).__name__}: {message})", remedy)


def require_start(findings: Iterable[Finding], stage: str) -> None:
    """Raises StartError with all errors among the findings of the checks before a stage, if there are any."""
    errors = [finding for finding in findings if finding.level == "error"]
    if not errors:
        return
    count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
    lines = "\n".join(map(describe_finding, errors)).replace("\n", "\n  ")
    raise StartError(f"waver {stage} cannot start: {count}\n  {lines}")


def describe_finding(finding: Finding) -> str:
    """Returns check and finding, followed by a line with an arrow and the remedy, if any."""
    return f"{finding.check}: {finding.found}" + (f"\n-> {finding.remedy}" if finding.remedy else "")


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
        text.append(describe_finding(finding).replace("\n", "\n" + " " * 9) + "\n")
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


def format_bytes(num_bytes: float | int) -> str:
    """Returns a number of bytes in MiB or GiB."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 / 10 else f"{num_bytes / 2**20:.1f} MiB"
