"""Compares two run folders: configuration, data, environment, training and metrics."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waver.data.annotations.captions import USUAL_FRACTION
from waver.evaluation.confidence import describe_errors
from waver.runs.comparison.reading import ComparisonError, ReadRun, read_run
from waver.runs.origin import kind_of
from waver.tools.object_store import display_path
from waver.tools.section import flatten

_TEST_KEYS = ("data.format", "data.split", "data.annotations")
"""Settings on which the queries and clips of test depend."""
_DATA_KEYS = (*_TEST_KEYS, "data.videos", "data.train_styles")
"""Settings on which those of validation depend."""
_OF_TRAINING = ("seed", "loss", "train", "checkpoint", "tracking", "profile")
"""Settings that say nothing of a model that waver did not train."""
_HELD_OUT_KEYS = ("data.validation_fraction", "data.validation_seed")
"""Which videos are held out of train for validation, where the data set has no split for it."""
_PROTOCOL = {
    "split": "another split",
    "gallery_size": "another gallery",
    "num_queries": "other queries",
    "ties": "ties are counted in another way",
}
"""Keys of evaluation_*.json that must be equal for metrics to be comparable -> reason given if they differ."""
_CAUTIONS = {
    "chosen_on": "model chosen on",
    "validation": "validation split",
    "leaky": "leaky dictionary",
    "device": "computed on",
    "precision": "precision",
}


@dataclass(frozen=True)
class ComparisonRow:
    """A value of both runs, None for a run that lacks it."""

    key: str
    a: Any
    b: Any
    counts: bool = True
    """Whether metrics can depend on it. False for values that only describe where or how fast a run was computed."""

    @property
    def differs(self) -> bool:
        """Whether the two values differ."""
        return self.a != self.b


@dataclass(frozen=True)
class MetricComparison:
    """Metrics of both runs on one split, and whether they may be compared."""

    title: str
    rows: tuple[ComparisonRow, ...]
    not_comparable: tuple[str, ...] = ()
    """Reasons why the difference of the metrics is meaningless; empty if they are comparable."""
    cautions: tuple[str, ...] = ()
    """Differences between the evaluations that may explain a difference of the metrics."""


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side. Includes rows whose values are equal."""

    a: str
    b: str
    config: tuple[ComparisonRow, ...]
    data: tuple[ComparisonRow, ...]
    environment: tuple[ComparisonRow, ...]
    training: tuple[ComparisonRow, ...]
    metrics: tuple[MetricComparison, ...]
    """Validation first, then every evaluation file that both runs have."""
    notes: tuple[str, ...]
    """Files that could not be read, and parts that could not be compared."""


def compare_runs(a: Path, b: Path) -> Comparison:
    """Compares two runs. They may be unfinished, and may be trials of a sweep.

    Args:
        a: folder of the first run.
        b: folder of the second run.

    Raises:
        ComparisonError: if a folder holds no run (one message names both folders), or both are the same folder.
    """
    runs: list[ReadRun] = []
    mistakes: list[str] = []
    for folder in (a, b):
        try:
            runs.append(read_run(folder))
        except ComparisonError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ComparisonError("\n".join(mistakes))
    if a.resolve() == b.resolve():
        raise ComparisonError(f"{display_path(a)} and {display_path(b)} are the same run: name another one")
    first, second = runs
    names = [run.config.name if run.config else run.folder.name for run in runs]
    if names[0] == names[1]:
        names = [display_path(run.folder) for run in runs]
    names = [name if run.kind == "trained" else f"{name} ({run.kind})" for name, run in zip(names, runs, strict=True)]
    config = _config_rows(first, second)
    return Comparison(
        *names,
        config=config,
        data=_rows(flatten(first.data), flatten(second.data)),
        environment=_rows(_environment(first), _environment(second)),
        training=_rows(_training(first), _training(second)),
        metrics=(*_validation(first, second, config), *_evaluations(first, second, config)),
        notes=tuple(_notes(first, second, names)),
    )


def _config_rows(a: ReadRun, b: ReadRun) -> tuple[ComparisonRow, ...]:
    if not (a.config and b.config):
        return ()
    counting = flatten(a.config.identity()).keys() | flatten(b.config.identity()).keys()
    settings = [_settings(run) for run in (a, b)]
    rows = [ComparisonRow(row.key, row.a, row.b, row.key in counting) for row in _rows(*settings)]
    return tuple(sorted(rows, key=lambda row: not row.counts))  # settings that affect metrics first


def _settings(run: ReadRun) -> dict[str, Any]:
    """Returns the settings of a run by dotted key; those of training only if waver trained its model."""
    assert run.config is not None, "the caller has checked it"
    without = {"name"} if run.kind == "trained" else {"name", *_OF_TRAINING}
    return flatten(run.config.model_dump(mode="json", exclude=without))


def _environment(run: ReadRun) -> dict[str, Any]:
    environment = dict(run.environment)
    if isinstance(changes := environment.get("git_changes"), str) and changes:
        environment["git_changes"] = "; ".join(line.strip() for line in changes.splitlines())
    for key in ("command", "gpus"):
        if isinstance(environment.get(key), list):
            environment[key] = " ".join(map(str, environment[key])) or "none"
    return environment


def _training(run: ReadRun) -> dict[str, Any]:
    best = run.best
    rows = {
        "status": run.progress,
        **(
            {} if run.kind == "trained" else {key: run.result["origin"].get(key) for key in ("model", "file", "sha256")}
        ),
        "steps": run.steps[-1]["step"] if run.steps else 0,
        "best epoch": best[0] if best else None,
        "validation t2v/R@1 before training (zero-shot)": run.zero_shot.get("t2v/R@1"),
        "seconds (since its workers were last started)": run.result.get("seconds"),
        "clips per second (median)": run.median("clips_per_s"),
        "share of time waiting for data (median)": run.median("data_wait_share"),
        "peak memory of a worker (bytes)": run.result.get("peak_memory_bytes_of_worker"),
        "last training loss": run.steps[-1].get("loss/total") if run.steps else None,
    }
    return {key: value for key, value in rows.items() if value is not None}


def _validation(a: ReadRun, b: ReadRun, config: tuple[ComparisonRow, ...]) -> list[MetricComparison]:
    if not (a.best and b.best):
        return []
    (epoch_a, metrics_a), (epoch_b, metrics_b) = a.best, b.best
    held_out = {run.result.get("validation_split", "") for run in (a, b)} != {"own"}
    same_gallery = a.gallery is not None and a.gallery == b.gallery
    compared = tuple(row for row in config if not (same_gallery and _is_usual_fraction(row)))
    different = _different(compared, _DATA_KEYS + (_HELD_OUT_KEYS if held_out else ()))
    unfinished = [run.folder.name for run in (a, b) if not run.result]
    cautions = [f"{' and '.join(unfinished)} not finished: its best metrics so far"] if unfinished else []
    if a.gallery:
        cautions.append(describe_errors(metrics_a, *a.gallery))
    return [
        MetricComparison(
            f"best validation (epochs {epoch_a} and {epoch_b})",
            _rows(metrics_a, metrics_b),
            (f"other clips: {'; '.join(different)}",) if different else (),
            tuple(cautions),
        )
    ]


def _evaluations(a: ReadRun, b: ReadRun, config: tuple[ComparisonRow, ...]) -> list[MetricComparison]:
    compared: list[MetricComparison] = []
    for name in sorted(a.evaluations.keys() & b.evaluations.keys()):
        left, right = a.evaluations[name], b.evaluations[name]
        not_comparable = [
            f"{what}: {left.get(key)} and {right.get(key)}"
            for key, what in _PROTOCOL.items()
            if left.get(key) != right.get(key)
        ]
        if different := _different(config, _TEST_KEYS):
            not_comparable.append(f"other data: {'; '.join(different)}")
        cautions = [
            f"{what}: {_in_words(left.get(key))} and {_in_words(right.get(key))}"
            for key, what in _CAUTIONS.items()
            if left.get(key) != right.get(key)
        ]
        if kind_of(left) != kind_of(right):
            cautions.insert(0, f"model: {kind_of(left)} and {kind_of(right)}")
        if lost := set(left.get("missing_clips") or ()) ^ set(right.get("missing_clips") or ()):
            cautions.append(
                f"{len(lost)} clips of the gallery failed to decode for one run only and count as its misses"
            )
        if (queries := left.get("num_queries")) and queries == right.get("num_queries"):
            cautions.append(f"one query of {queries} is {100 / queries:.2f} points of R@K from text to video")
            if num_clips := left.get("gallery_size"):
                cautions.append(describe_errors(left["metrics"], num_clips, queries))
        compared.append(
            MetricComparison(name, _rows(_metrics(left), _metrics(right)), tuple(not_comparable), tuple(cautions))
        )
    return compared


def _metrics(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metrics and, for each writing style, text-to-video R@1."""
    by_style = evaluation.get("styles")
    return dict(evaluation["metrics"]) | {
        f"t2v/R@1, {style}": metrics["t2v/R@1"]
        for style, metrics in (by_style if isinstance(by_style, dict) else {}).items()
        if isinstance(metrics, dict) and "t2v/R@1" in metrics
    }


def _notes(a: ReadRun, b: ReadRun, names: list[str]) -> Iterable[str]:
    for run, name in zip((a, b), names, strict=True):
        yield from (f"{name}: {problem}" for problem in run.problems)
    if not (a.config and b.config):
        yield "settings are not compared: one of the configurations cannot be read"
    if not (a.best and b.best):
        without = [(run, name) for run, name in zip((a, b), names, strict=True) if not run.best]
        why = " and ".join(
            f"{name} has no evaluation yet" if run.kind == "trained" else f"{name} has no epochs to choose from"
            for run, name in without
        )
        yield f"validation is not compared: {why}"
    for name in sorted(a.evaluations.keys() ^ b.evaluations.keys()):
        only, other = (names[0], b) if name in a.evaluations else (names[1], a)
        split = name.split("_")[1]
        command = f"waver evaluate {shlex.quote(display_path(other.folder))} --split {split}"
        yield f"{name}.json exists for {only} only: run `{command}`"


def _is_usual_fraction(row: ComparisonRow) -> bool:
    """Whether one run holds out the usual fraction because an earlier version wrote it down, and the other by default."""
    return row.key == "data.validation_fraction" and {row.a, row.b} == {None, USUAL_FRACTION}


def _in_words(value: Any) -> Any:
    """Returns what a value of a result means in a sentence."""
    if value is None:
        return "nothing"
    return ("no", "yes")[value] if isinstance(value, bool) else value


def _different(config: tuple[ComparisonRow, ...], keys: Iterable[str]) -> list[str]:
    wanted = set(keys)
    return [f"{row.key} = {row.a} and {row.b}" for row in config if row.key in wanted and row.differs]


def _rows(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[ComparisonRow, ...]:
    """Returns a row per key, in the order of `a`; keys that only `b` has come last."""
    return tuple(ComparisonRow(key, a.get(key), b.get(key)) for key in (*a, *(key for key in b if key not in a)))
