"""Writes the results of a sweep: tables, best configuration, TensorBoard HParams and report page."""

import logging
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from waver.config import ExperimentConfig, SweepConfig, load_config
from waver.runs.tracking.hparams import (
    Value,
    comparable_settings,
    hparam_value,
    write_best,
    write_hparams,
    write_session_end,
)
from waver.sweeps.folder import TrialState, read_if_written, read_trials
from waver.sweeps.page import write_page
from waver.sweeps.ranking import (
    chance_text,
    loss_by_fine_tuning,
    mean_objective,
    objective_deviation,
    objective_text,
    rank_trials,
    rivals_of_best,
)
from waver.sweeps.space import lookup
from waver.sweeps.tables import plain, results_table, trials_table
from waver.sweeps.then import fine_tuned_config, read_fine_tuned
from waver.tools.files import atomic_write, write_text

logger = logging.getLogger(__name__)


def best_config(
    folder: Path, states: Sequence[TrialState], sweep: SweepConfig, *, fine_tuned: Sequence[TrialState] = ()
) -> tuple[TrialState, ExperimentConfig] | None:
    """Returns the best finished trial and the configuration that repeats it with `waver train`; None if none is finished.

    The configuration has the first seed of the trial.

    Args:
        folder: folder of the sweep.
        states: the searched trials.
        sweep: configuration of the sweep.
        fine_tuned: the fine-tuned trials: if one is finished, the best of them is chosen.
    """
    best, searched = (
        next((state for state in rank_trials(group, sweep) if state.status == "finished"), None)
        for group in (fine_tuned, states)
    )
    named = {"name": f"{sweep.name}-best"}
    if best is not None:
        trial = next(state for state in states if state.number == best.number)
        config = fine_tuned_config(folder, sweep, trial, best.runs[0].seed)
        return best, config.model_copy(update=named)
    if searched is None:
        return None
    overrides = searched.point | named | {"seed": searched.runs[0].seed}
    return searched, load_config(folder / "base.yaml", overrides, stored=True)


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
        print_table: called with the table of all trials, and with that of the fine-tuned ones, if there are any.
    """
    states = rank_trials(read_trials(folder, runs=False), sweep)
    fine_tuned = rank_trials(read_fine_tuned(folder, sweep, runs=False), sweep)
    table, remarks = results_table(states, sweep, fine_tuned=fine_tuned), _remarks(states, fine_tuned, sweep)
    with atomic_write(folder / "results.parquet") as file:
        pq.write_table(table, file)
    with atomic_write(folder / "results.csv") as file:
        pa_csv.write_csv(table, file)
    best = best_config(folder, states, sweep, fine_tuned=fine_tuned)
    if best:
        write_text(folder / "best.yaml", _best_yaml(*best, sweep, remarks, is_tuned=best[0] in fine_tuned))
    title = f"{sweep.name}: {sweep.objective.metric} on {sweep.objective.split}{chance_text(states, sweep)}"
    print_table(trials_table(title, states, sweep))
    if fine_tuned:
        print_table(trials_table(f"{title}, fine-tuned", fine_tuned, sweep, started_from=states))
    # A process that was told to stop has little time: the tables come first, the rest can be made again from the files.
    _write_events(folder / "events", states, fine_tuned, sweep, base)
    rows, rows_then = ([_row(state, sweep, base) for state in group] for group in (states, fine_tuned))
    shared, chance = read_if_written(folder / "shared.json") or [], chance_text(states, sweep)
    page = folder / "report.html"
    for sentence in write_page(page, sweep, rows, shared, chance=chance, remarks=remarks, fine_tuned=rows_then):
        logger.info(sentence)
    for sentence in remarks:
        logger.warning(sentence)
    if best:
        logger.info(f"report: {page}")
        logger.info(f"curves: waver board {shlex.quote(str(folder / 'events'))}")
        logger.info(f"next: waver train {shlex.quote(str(folder / 'best.yaml'))}")
    else:
        logger.info("no trial is finished, so there is no best trial yet")


def _remarks(states: Sequence[TrialState], fine_tuned: Sequence[TrialState], sweep: SweepConfig) -> list[str]:
    """Returns sentences on what speaks against the best trial: rivals, and a loss by fine-tuning."""
    chosen_among = fine_tuned if any(state.status == "finished" for state in fine_tuned) else states
    return [*rivals_of_best(chosen_among, sweep), *loss_by_fine_tuning(states, fine_tuned, sweep)]


def end_runs(state: TrialState) -> None:
    """Writes into the events of a trial's unfinished runs how the trial ended; TensorBoard would show them as running."""
    assert state.status in ("stopped", "failed"), "another trial may continue, or has written its end"
    for run in state.runs:
        events = run.folder / "events"
        if events.is_dir() and not run.finished:
            with SummaryWriter(str(events)) as writer:
                write_session_end(writer, end_s=time.time(), status=state.status)


def _best_yaml(
    best: TrialState, config: ExperimentConfig, sweep: SweepConfig, remarks: list[str], *, is_tuned: bool
) -> str:
    metric, run, start = sweep.objective.metric, best.runs[0], config.train.start_from
    seeds = f", mean of {len(best.runs)} seeds" if len(best.runs) > 1 else ""
    lines = [
        f"The best of sweep {sweep.name}: trial {best.number}{', fine-tuned' if is_tuned else ''}, {metric} on "
        f"{sweep.objective.split} {objective_text(best, sweep)}{chance_text([best], sweep)}{seeds}.",
        f"With this seed it was {run.metrics[metric]:.6g}.",
        *(f"{sentence}." for sentence in remarks),
    ]
    if is_tuned and start:
        lines.append(
            f"It starts from a checkpoint of the search, whose configuration is {start.parent / 'config.yaml'}."
        )
    return "".join(f"# {line}\n" for line in lines) + config.to_yaml()


def _write_events(
    folder: Path,
    states: Sequence[TrialState],
    fine_tuned: Sequence[TrialState],
    sweep: SweepConfig,
    base: ExperimentConfig,
) -> None:
    """Writes one TensorBoard run per trial, with its settings and metrics; replaces those of an earlier call.

    All settings are written, not only those of the point, because TensorBoard shows trials in one table with other runs and
    with the runs of their seeds, which have the same group name.
    """
    shutil.rmtree(folder, ignore_errors=True)
    settings = comparable_settings(base.model_dump(mode="json"))
    changes = sweep.then.changes if sweep.then else {}
    for state in states:
        chosen = settings | {key: hparam_value(value) for key, value in state.point.items()}
        _write_trial(
            folder / f"trial_{state.number:04d}", state, sweep, chosen, group=f"{sweep.name}/{state.number:04d}"
        )
    for state in fine_tuned:
        chosen = settings | {key: hparam_value(value) for key, value in (state.point | changes).items()}
        group = f"{sweep.name}/then/{state.number:04d}"
        _write_trial(folder / f"then_{state.number:04d}", state, sweep, chosen, group=group)


def _write_trial(
    folder: Path, state: TrialState, sweep: SweepConfig, settings: Mapping[str, Value], *, group: str
) -> None:
    """Writes the TensorBoard run of a trial, unless it has no metrics yet."""
    value = mean_objective(state, sweep)
    if value is None:
        return
    metrics = {name: mean(state.values(name)) for name in (state.runs[0].metrics if state.runs else ())}
    with SummaryWriter(str(folder)) as writer:
        write_hparams(writer, settings, start_s=max(0.0, state.ended_s - state.seconds), group=group)
        write_best(writer, state.epochs, metrics)
        for name, number in (("objective", value), ("epochs", state.epochs), ("seconds", state.seconds)):
            writer.add_scalar(name, number, state.epochs)
        write_session_end(writer, end_s=state.ended_s, status=state.status)


def _row(state: TrialState, sweep: SweepConfig, base: ExperimentConfig) -> dict[str, Any]:
    """Returns the row of a trial for page and plots; `values` has every key of the space, from the point or the base."""
    settings = base.model_dump(mode="json")
    return {
        "values": {key: plain(state.point.get(key, lookup(settings, key))) for key in sweep.space},
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
