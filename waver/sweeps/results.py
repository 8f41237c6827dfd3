"""What a sweep came to: a table, files for other programs, the best experiment, TensorBoard's HParams, one page to read."""

import json
import logging
import shutil
from collections.abc import Callable
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
from waver.runs.tracking.hparams import comparable_settings, finish_hparams, plain, write_best, write_hparams
from waver.sweeps.folder import SeedRun, TrialState, read_if_written, read_trials
from waver.sweeps.page import write_page
from waver.sweeps.space import lookup
from waver.tools.files import atomic_write, write_text

logger = logging.getLogger(__name__)


_ORDER = ("finished", "stopped", "running", "failed")


def mean_objective(state: TrialState, sweep: SweepConfig) -> float | None:
    """Mean over the seeds that have a figure; None where none has."""
    values = state.values(sweep.objective.metric)
    return mean(values) if values else None


def objective_deviation(state: TrialState, sweep: SweepConfig) -> float | None:
    """Standard deviation over the seeds; None where there are not two."""
    values = state.values(sweep.objective.metric)
    return stdev(values) if len(values) > 1 else None


def rank_trials(states: list[TrialState], sweep: SweepConfig) -> list[TrialState]:
    """Finished trials first, the best of them foremost; then those that were stopped, run still, or failed.

    A trial that was stopped is never the best: its figure is one of fewer epochs.
    """
    sign = -1 if sweep.objective.mode == "max" else 1

    def key(state: TrialState) -> tuple:
        value = mean_objective(state, sweep)
        return _ORDER.index(state.status), value is None, sign * (value or 0.0), state.number

    return sorted(states, key=key)


def objective_text(state: TrialState, sweep: SweepConfig) -> str:
    """Mean and deviation as people read them."""
    value, spread = mean_objective(state, sweep), objective_deviation(state, sweep)
    return "none" if value is None else f"{value:.2f}" if spread is None else f"{value:.2f} ± {spread:.2f}"


def trials_table(title: str, states: list[TrialState], sweep: SweepConfig) -> Table:
    """Trials, in their order.

    Args:
        title: above the table.
        states: the trials.
        sweep: theirs.
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
    """The last part of each dotted key, as people call it; the whole key where two end alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return [name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)]


def results_table(states: list[TrialState], sweep: SweepConfig) -> pa.Table:
    """A row a run (a trial has one for each seed; one that failed before its first epoch has one without figures)."""
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
    """The best finished trial and its experiment, as `waver train` repeats it; None where none is finished.

    Of several seeds it is the first.
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
    """Writes results.csv, results.parquet, best.yaml, events/ and report.html into the folder of a sweep.

    Args:
        folder: of the sweep.
        sweep: the sweep.
        base: its experiment.
        print_table: called with the table of all trials.
    """
    states = rank_trials(read_trials(folder), sweep)
    table = results_table(states, sweep)
    with atomic_write(folder / "results.parquet") as file:
        pq.write_table(table, file)
    with atomic_write(folder / "results.csv") as file:
        pa_csv.write_csv(table, file)
    best = best_config(folder, states, sweep)
    if best:
        write_text(folder / "best.yaml", _best_yaml(*best, sweep))
    print_table(trials_table(f"{sweep.name}: {sweep.objective.metric} on {sweep.objective.split}", states, sweep))
    # Who is being ended has little time: the rest can be made again from what is there.
    _write_hparams(folder / "events", states, sweep, base)
    rows = [_row(state, sweep, base) for state in states]
    for sentence in write_page(folder / "report.html", sweep, rows, read_if_written(folder / "shared.json") or []):
        logger.info(sentence)
    if best:
        logger.info(f"look: {folder / 'report.html'}, waver board {folder / 'events'}")
        logger.info(f"next: waver train {folder / 'best.yaml'}")
    else:
        logger.info("no trial is finished, so there is no best one yet")


def _best_yaml(best: TrialState, config: ExperimentConfig, sweep: SweepConfig) -> str:
    metric, run = sweep.objective.metric, best.runs[0]
    return (
        f"# The best of sweep {sweep.name}: trial {best.number}, {metric} on {sweep.objective.split} "
        f"{objective_text(best, sweep)}{f', mean of {len(best.runs)} seeds' if len(best.runs) > 1 else ''}.\n"
        f"# With this seed it was {run.metrics[metric]:.6g}.\n{config.to_yaml()}"
    )


def _write_hparams(folder: Path, states: list[TrialState], sweep: SweepConfig, base: ExperimentConfig) -> None:
    """One TensorBoard run a trial, with its settings and its figures. They are written anew: figures may have changed.

    All settings, rather than the point alone: trials stand in one table with other runs, and with their own seeds, whose
    group they share.
    """
    shutil.rmtree(folder, ignore_errors=True)
    settings = comparable_settings(base.model_dump(mode="json"))
    for state in states:
        value = mean_objective(state, sweep)
        if value is None:
            continue
        figures = {name: mean(state.values(name)) for name in (state.runs[0].metrics if state.runs else ())}
        chosen = settings | {key: plain(setting) for key, setting in state.point.items()}
        with SummaryWriter(str(folder / f"trial_{state.number:04d}")) as writer:
            start_s = max(0.0, state.ended_s - state.seconds)
            write_hparams(writer, chosen, start_s=start_s, group=f"{sweep.name}/{state.number:04d}")
            write_best(writer, state.epochs, figures)
            for name, figure in (("objective", value), ("epochs", state.epochs), ("seconds", state.seconds)):
                writer.add_scalar(name, figure, state.epochs)
            finish_hparams(writer, end_s=state.ended_s, status=state.status)


def _row(state: TrialState, sweep: SweepConfig, base: ExperimentConfig) -> dict[str, Any]:
    """What the page and its plots need to know of a trial; `values` are its settings, also where they are as in the base."""
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
    """A column of one type: numbers stay numbers, a mixture becomes words."""
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
