"""Ranks the trials of a sweep, and writes its results as tables, best configuration, TensorBoard HParams and report page."""

import json
import logging
import shlex
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from waver.config import ExperimentConfig, SweepConfig, load_config
from waver.evaluation.confidence import beside, describe_rivals
from waver.runs.tracking.hparams import comparable_settings, hparam_value, write_best, write_hparams, write_session_end
from waver.sweeps.folder import SeedRun, TrialState, read_if_written, read_trials
from waver.sweeps.page import write_page
from waver.sweeps.space import lookup
from waver.tools.files import atomic_write, write_text

logger = logging.getLogger(__name__)

_ORDER = ("finished", "stopped", "running", "interrupted", "failed")


def mean_objective(state: TrialState, sweep: SweepConfig) -> float | None:
    """Returns the mean of the objective over the seeds that have ended an epoch; None if no seed has."""
    values = state.values(sweep.objective.metric)
    return mean(values) if values else None


def objective_deviation(state: TrialState, sweep: SweepConfig) -> float | None:
    """Returns the standard deviation of the objective over seeds; None for fewer than two seeds."""
    values = state.values(sweep.objective.metric)
    return stdev(values) if len(values) > 1 else None


def rank_trials(states: list[TrialState], sweep: SweepConfig) -> list[TrialState]:
    """Sorts trials by status (finished, stopped, running or interrupted, failed), then by objective, the best first.

    A trial that was stopped early is never the best, because its objective is that of fewer epochs.
    """
    sign = -1 if sweep.objective.mode == "max" else 1

    def key(state: TrialState) -> tuple:
        value = mean_objective(state, sweep)
        return _ORDER.index(state.status), value is None, sign * (value or 0.0), state.number

    return sorted(states, key=key)


def objective_text(state: TrialState, sweep: SweepConfig) -> str:
    """Formats the mean and standard deviation of the objective."""
    value, spread = mean_objective(state, sweep), objective_deviation(state, sweep)
    return "none" if value is None else f"{value:.2f}" if spread is None else f"{value:.2f} ± {spread:.2f}"


def chance_text(states: Iterable[TrialState], sweep: SweepConfig) -> str:
    """Returns what should stand beside the objective: its value by chance and the gallery; empty if the gallery is unknown.

    Args:
        states: trials of one gallery.
        sweep: configuration of their sweep.
    """
    gallery = next((state.gallery for state in states if state.gallery), None)
    return f" ({beside(gallery[0], sweep.objective.metric)})" if gallery else ""


def rivals_of_best(states: list[TrialState], sweep: SweepConfig) -> list[str]:
    """Says which finished trials tie with the best, or are within its standard error, see `describe_rivals`."""
    ranked = [state for state in rank_trials(states, sweep) if state.status == "finished"]
    values = {state.number: value for state in ranked if (value := mean_objective(state, sweep)) is not None}
    if not values:
        return []
    best = ranked[0]
    num_clips, num_captions = best.gallery or (None, None)
    metric = sweep.objective.metric
    found = describe_rivals(values, best.number, metric, what="trial", num_clips=num_clips, num_captions=num_captions)
    return [f"best.yaml is trial {best.number}, but {'; '.join(found)}"] if found else []


def trials_table(title: str, states: list[TrialState], sweep: SweepConfig) -> Table:
    """Makes a terminal table with one row per trial, in the given order.

    Args:
        title: title of the table.
        states: the trials.
        sweep: configuration of their sweep.
    """
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=0)
    for column in ("trial", "", sweep.objective.metric, "epochs", "seconds", *short_names(list(sweep.space))):
        table.add_column(column, justify="left" if column == "" else "right", no_wrap=column == "")
    for state in states:
        values = (_text(state.point.get(key, "")) for key in sweep.space)
        table.add_row(
            str(state.number),
            state.status,
            objective_text(state, sweep),
            str(state.epochs),
            f"{state.seconds:.0f}",
            *values,
        )
    return table


def short_names(keys: list[str]) -> list[str]:
    """Returns the last part of each dotted key, or the whole key if two keys have the same last part."""
    last = [key.rpartition(".")[2] for key in keys]
    return [name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)]


def results_table(states: list[TrialState], sweep: SweepConfig) -> pa.Table:
    """Makes a table with one row per run, that is per seed of a trial; a trial without runs has one row without metrics."""
    metrics = sorted({name for state in states for run in state.runs for name in run.metrics})
    rows = []
    for state in states:
        for run in state.runs or [SeedRun(-1, state.folder, 0, {}, False)]:
            rows.append(
                {
                    "trial": state.number,
                    "seed": run.seed if run.seed >= 0 else None,
                    "status": state.status,
                    "objective": mean_objective(state, sweep),
                    "deviation": objective_deviation(state, sweep),
                    **{key: _plain(state.point.get(key)) for key in sweep.space},
                    **{name: run.metrics.get(name) for name in metrics},
                    "epochs": run.epochs,
                    "trial_seconds": state.seconds,
                    "trial_gpu_seconds": state.gpu_seconds,
                    "error": state.error or None,
                }
            )
    columns = {name: _column([row[name] for row in rows]) for name in rows[0]}
    return pa.table(columns)


def best_config(
    folder: Path, states: list[TrialState], sweep: SweepConfig
) -> tuple[TrialState, ExperimentConfig] | None:
    """Returns the best finished trial and the configuration that repeats it with `waver train`; None if none is finished.

    The configuration has the first seed of the trial.
    """
    best = next((state for state in rank_trials(states, sweep) if state.status == "finished"), None)
    if best is None:
        return None
    overrides = best.point | {"name": f"{sweep.name}-best", "seed": best.runs[0].seed}
    return best, load_config(folder / "base.yaml", overrides)


def write_results(
    folder: Path,
    sweep: SweepConfig,
    base: ExperimentConfig,
    *,
    print_table: Callable[[Table], None],
) -> None:
    """Writes results.csv, results.parquet, best.yaml, events/ and report.html into the folder of a sweep that does not run.

    Args:
        folder: folder of the sweep.
        sweep: configuration of the sweep.
        base: configuration of its base experiment.
        print_table: called with the table of all trials.
    """
    states = rank_trials(read_trials(folder, runs=False), sweep)
    table, rivals = results_table(states, sweep), rivals_of_best(states, sweep)
    with atomic_write(folder / "results.parquet") as file:
        pq.write_table(table, file)
    with atomic_write(folder / "results.csv") as file:
        pa_csv.write_csv(table, file)
    best = best_config(folder, states, sweep)
    if best:
        write_text(folder / "best.yaml", _best_yaml(*best, sweep, rivals))
    title = f"{sweep.name}: {sweep.objective.metric} on {sweep.objective.split}{chance_text(states, sweep)}"
    print_table(trials_table(title, states, sweep))
    # A process that was told to stop has little time: the table comes first, the rest can be made again from the files.
    _write_hparams(folder / "events", states, sweep, base)
    rows = [_row(state, sweep, base) for state in states]
    shared, chance = read_if_written(folder / "shared.json") or [], chance_text(states, sweep)
    for sentence in write_page(folder / "report.html", sweep, rows, shared, chance=chance, rivals=rivals):
        logger.info(sentence)
    for sentence in rivals:
        logger.warning(sentence)
    if best:
        logger.info(f"report: {folder / 'report.html'}")
        logger.info(f"curves: waver board {shlex.quote(str(folder / 'events'))}")
        logger.info(f"next: waver train {shlex.quote(str(folder / 'best.yaml'))}")
    else:
        logger.info("no trial is finished, so there is no best trial yet")


def end_runs(state: TrialState) -> None:
    """Writes into the events of a trial's unfinished runs how the trial ended; TensorBoard would show them as running."""
    assert state.status in ("stopped", "failed"), "another trial may continue, or has written its end"
    for run in state.runs:
        events = run.folder / "events"
        if events.is_dir() and not run.finished:
            with SummaryWriter(str(events)) as writer:
                write_session_end(writer, end_s=time.time(), status=state.status)


def _best_yaml(best: TrialState, config: ExperimentConfig, sweep: SweepConfig, rivals: list[str]) -> str:
    metric, run = sweep.objective.metric, best.runs[0]
    seeds = f", mean of {len(best.runs)} seeds" if len(best.runs) > 1 else ""
    return (
        f"# The best of sweep {sweep.name}: trial {best.number}, {metric} on {sweep.objective.split} "
        f"{objective_text(best, sweep)}{chance_text([best], sweep)}{seeds}.\n"
        f"# With this seed it was {run.metrics[metric]:.6g}.\n"
        f"{''.join(f'# {sentence}.{chr(10)}' for sentence in rivals)}{config.to_yaml()}"
    )


def _write_hparams(folder: Path, states: list[TrialState], sweep: SweepConfig, base: ExperimentConfig) -> None:
    """Writes one TensorBoard run per trial, with its settings and metrics; replaces those of an earlier call.

    All settings are written, not only those of the point, because TensorBoard shows trials in one table with other runs and
    with the runs of their seeds, which have the same group name.
    """
    shutil.rmtree(folder, ignore_errors=True)
    settings = comparable_settings(base.model_dump(mode="json"))
    for state in states:
        value = mean_objective(state, sweep)
        if value is None:
            continue
        metrics = {name: mean(state.values(name)) for name in (state.runs[0].metrics if state.runs else ())}
        chosen = settings | {key: hparam_value(setting) for key, setting in state.point.items()}
        with SummaryWriter(str(folder / f"trial_{state.number:04d}")) as writer:
            start_s = max(0.0, state.ended_s - state.seconds)
            write_hparams(writer, chosen, start_s=start_s, group=f"{sweep.name}/{state.number:04d}")
            write_best(writer, state.epochs, metrics)
            for name, number in (("objective", value), ("epochs", state.epochs), ("seconds", state.seconds)):
                writer.add_scalar(name, number, state.epochs)
            write_session_end(writer, end_s=state.ended_s, status=state.status)


def _row(state: TrialState, sweep: SweepConfig, base: ExperimentConfig) -> dict[str, Any]:
    """Returns the row of a trial for page and plots; `values` has every key of the space, from the point or the base."""
    settings = base.model_dump(mode="json")
    return {
        "values": {key: _plain(state.point.get(key, lookup(settings, key))) for key in sweep.space},
        "number": state.number,
        "status": state.status,
        "objective": mean_objective(state, sweep),
        "deviation": objective_deviation(state, sweep),
        "objective_text": objective_text(state, sweep),
        "epochs": state.epochs,
        "seconds": state.seconds,
        "gpu_seconds": state.gpu_seconds,
        "ended_s": state.ended_s,
        "error": state.error,
        "point": state.point,
    }


def _column(values: list[Any]) -> pa.Array:
    """Makes a column of one type: int and float become float, any other mixture becomes strings."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return pa.array([value if value is None else float(value) for value in values])
    if len(kinds) > 1:
        return pa.array([value if value is None else str(value) for value in values])
    return pa.array(values)


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else json.dumps(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.3g}" if isinstance(value, float) else json.dumps(value)
