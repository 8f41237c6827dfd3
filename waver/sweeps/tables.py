"""Makes the tables of a sweep: for the terminal, and with a row for each run."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.table import Table

from waver.config import SweepConfig
from waver.runs.start import read_start
from waver.sweeps.folder import SeedRun, TrialState
from waver.sweeps.ranking import mean_objective, objective_deviation, objective_text


def trials_table(
    title: str, states: list[TrialState], sweep: SweepConfig, *, started_from: Sequence[TrialState] = ()
) -> Table:
    """Makes a terminal table with one row per trial, in the given order.

    Args:
        title: title of the table.
        states: the trials.
        sweep: configuration of their sweep.
        started_from: of fine-tuned trials, the searched trials, whose objective stands in a column `before`.
    """
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=0)
    before = {state.number: objective_text(state, sweep) for state in started_from}
    objective = [sweep.objective.metric, "before"] if before else [sweep.objective.metric]
    number = "from trial" if before else "trial"
    for column in (number, "", *objective, "epochs", "seconds", *short_names(list(sweep.space))):
        table.add_column(column, justify="left" if column == "" else "right", no_wrap=column == "")
    for state in states:
        values = (_text(state.point.get(key, "")) for key in sweep.space)
        table.add_row(
            str(state.number),
            state.status,
            objective_text(state, sweep),
            *([before.get(state.number, "")] if before else []),
            str(state.epochs),
            f"{state.seconds:.0f}",
            *values,
        )
    return table


def short_names(keys: list[str]) -> list[str]:
    """Returns the last part of each dotted key, or the whole key if two keys have the same last part."""
    last = [key.rpartition(".")[2] for key in keys]
    return [name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)]


def results_table(states: list[TrialState], sweep: SweepConfig, *, fine_tuned: Sequence[TrialState] = ()) -> pa.Table:
    """Makes a table with one row per run, that is per seed of a trial; a trial without runs has one row without metrics.

    Args:
        states: the searched trials.
        sweep: configuration of their sweep.
        fine_tuned: the fine-tuned trials, which have the numbers of the searched ones. Their rows come first. If the sweep
            hands trials to fine-tuning, the column `stage` tells them apart, and `started_from` names their checkpoints.
    """
    everything = [*fine_tuned, *states]
    metrics = sorted({name for state in everything for run in state.runs for name in run.metrics})
    rows = []
    for number, state in enumerate(everything):
        for run in state.runs or [SeedRun(-1, state.folder, 0, {}, False)]:
            stage = {"stage": "fine-tuned" if number < len(fine_tuned) else "searched", "started_from": _start(run)}
            rows.append(
                {
                    "trial": state.number,
                    **(stage if sweep.then else {}),
                    "seed": run.seed if run.seed >= 0 else None,
                    "status": state.status,
                    "objective": mean_objective(state, sweep),
                    "deviation": objective_deviation(state, sweep),
                    **{key: plain(state.point.get(key)) for key in sweep.space},
                    **{name: run.metrics.get(name) for name in metrics},
                    "epochs": run.epochs,
                    "trial_seconds": state.seconds,
                    "trial_gpu_seconds": state.gpu_seconds,
                    "error": state.error or None,
                }
            )
    columns = {name: _column([row[name] for row in rows]) for name in rows[0]}
    return pa.table(columns)


def _start(run: SeedRun) -> str | None:
    started = read_start(run.folder)
    return started["checkpoint"] if started else None


def _column(values: list[Any]) -> pa.Array:
    """Makes a column of one type: int and float become float, any other mixture becomes strings."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return pa.array([value if value is None else float(value) for value in values])
    if len(kinds) > 1:
        return pa.array([value if value is None else str(value) for value in values])
    return pa.array(values)


def plain(value: Any) -> Any:
    """Returns a setting as a number, string, bool or None; lists and mappings as JSON."""
    return value if isinstance(value, bool | int | float | str | None) else json.dumps(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.3g}" if isinstance(value, float) else json.dumps(value)
