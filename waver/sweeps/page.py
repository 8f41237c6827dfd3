"""Writes the report of a sweep: one self-contained HTML page with trials, plots, shared artifacts and errors."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from waver.config import SweepConfig
from waver.sweeps.importance import compute_importance
from waver.sweeps.plots import best_so_far, importance_bars, marginal, parallel_coordinates
from waver.tools.html import html_table, write_html

_STYLE = """
td:nth-child(2), th:nth-child(2) { text-align: left }
tr.finished td:nth-child(2) { color: #1f6fb4 } tr.stopped td:nth-child(2) { color: #b86b0b }
tr.failed td:nth-child(2) { color: #b3261e }
"""


def write_page(
    path: Path,
    sweep: SweepConfig,
    rows: Sequence[Mapping[str, Any]],
    shared: Sequence[Mapping[str, Any]],
    *,
    chance: str = "",
    remarks: Sequence[str] = (),
    fine_tuned: Sequence[Mapping[str, Any]] = (),
) -> list[str]:
    """Writes the report page of a sweep.

    Args:
        path: path of the HTML file.
        sweep: configuration of the sweep.
        rows: one mapping per trial, the best first, with the keys number, status, objective, deviation, objective_text,
            epochs, seconds, gpu_seconds, ended_s, error, point, values.
        shared: one mapping per clip store or knowledge that trials share, with the keys what, path, trials, there, seconds.
        chance: what stands beside the objective, see `chance_text`.
        remarks: sentences on the best trial, such as those of `rivals_of_best`.
        fine_tuned: as `rows`, of the fine-tuned trials, which have the numbers of the trials that they started from.

    Returns:
        One sentence for each plot that is missing, with the reason.
    """
    keys = list(sweep.space)
    plots, missing = _plots(sweep, [row for row in rows if row["objective"] is not None])
    body = [
        f"<p>{_summary(sweep, rows, fine_tuned, chance)}</p>",
        *(f"<p>{escape(sentence)}.</p>" for sentence in remarks),
        *_fine_tuned(sweep, rows, fine_tuned, chance),
        "<h2>Trials</h2>",
        html_table(
            ["trial", "", f"{sweep.objective.metric}{chance}", "epochs", "seconds", "GPU-seconds", *keys],
            [_cells(row, keys) for row in rows],
            [row["status"] for row in rows],
        ),
        *plots,
        "<h2>Shared by the trials</h2>",
        _shared_table(shared),
        *_failures([*fine_tuned, *rows]),
        f"<h2>Configuration of the sweep</h2><pre>{escape(sweep.to_yaml())}</pre>",
    ]
    write_html(path, f"Sweep {sweep.name}", body, _STYLE)
    return missing


def _fine_tuned(
    sweep: SweepConfig, rows: Sequence[Mapping[str, Any]], fine_tuned: Sequence[Mapping[str, Any]], chance: str
) -> list[str]:
    """Returns heading and table of the fine-tuned trials; nothing if there are none."""
    if sweep.then is None or not fine_tuned:
        return []
    keys, metric = list(sweep.space), sweep.objective.metric
    before = {row["number"]: row["objective_text"] for row in rows}
    changed = ", ".join(f"{key} = {_text(value)}" for key, value in sweep.then.changes.items())
    return [
        "<h2>Fine-tuned</h2>",
        f"<p>{escape(f'Each starts from the best checkpoint of the searched trial of its number, with {changed}.')}</p>",
        html_table(
            ["from trial", "", f"{metric}{chance}", "before", "epochs", "seconds", "GPU-seconds", *keys],
            [[*_cells(row, keys)[:3], before.get(row["number"], ""), *_cells(row, keys)[3:]] for row in fine_tuned],
            [row["status"] for row in fine_tuned],
        ),
    ]


def _plots(sweep: SweepConfig, measured: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Draws the plots of all trials that have an objective.

    Returns:
        HTML elements, and one sentence for each plot that is missing.
    """
    metric, mode, keys = sweep.objective.metric, sweep.objective.mode, list(sweep.space)
    shares, note = compute_importance([row["values"] for row in measured], [row["objective"] for row in measured])
    missing = [] if shares else [note]
    try:
        plots = [
            "<h2>Parallel coordinates</h2><p>One line per trial. Dotted: trials that did not finish training.</p>",
            parallel_coordinates(measured, keys, metric, mode),
            "<h2>Objective by key</h2><p>Coloured: one trial, with the standard deviation over its seeds. Black: mean and "
            "standard deviation over the trials with the same value.</p>",
            f'<div class="plots">{"".join(_marginals(measured, keys, metric))}</div>',
            "<h2>Best objective over time</h2>",
            best_so_far(measured, metric, mode),
            f"<h2>Importance</h2><p>{escape(note)}. Trials that were stopped early count with their last objective.</p>",
            importance_bars(shares) if shares else "",
        ]
    except ImportError:
        sentence = "plots: not drawn, they need matplotlib: pip install 'waver[tune]', and run the same command again"
        return [f"<p>{escape(sentence)}</p>"], [*missing, sentence]
    return plots, missing


def _shared_table(shared: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            one["what"],
            one["path"],
            one["trials"] or "",
            "found" if one["there"] else "made once",
            f"{one['seconds']:.1f}",
        ]
        for one in shared
    ]
    return html_table(["what", "path", "trials", "", "seconds"], rows)


def _summary(
    sweep: SweepConfig, rows: Sequence[Mapping[str, Any]], fine_tuned: Sequence[Mapping[str, Any]], chance: str
) -> str:
    counts = {
        name: sum(row["status"] == name for row in rows) for name in ("finished", "stopped", "failed", "interrupted")
    }
    words = {"finished": "finished", "stopped": "stopped early", "failed": "failed", "interrupted": "interrupted"}
    counts_text = ", ".join(f"{count} {words[name]}" for name, count in counts.items() if count)
    counts_text += f"; {len(fine_tuned)} of them fine-tuned" if fine_tuned else ""
    seconds, gpu_seconds = (sum(row[name] for row in (*rows, *fine_tuned)) for name in ("seconds", "gpu_seconds"))
    seeds = f", mean over {sweep.repeats} seeds" if sweep.repeats > 1 else ""
    return escape(
        f"{len(rows)} trials: {counts_text}. Objective: {sweep.objective.metric} on {sweep.objective.split}{chance}{seeds}. "
        f"{seconds / 60:.1f} minutes in all trials, {gpu_seconds / 3600:.2f} GPU-hours."
    )


def _cells(row: Mapping[str, Any], keys: Sequence[str]) -> list[Any]:
    values = [_text(row["point"][key]) if key in row["point"] else "" for key in keys]
    numbers = [row["objective_text"], row["epochs"], f"{row['seconds']:.0f}", f"{row['gpu_seconds']:.0f}"]
    return [row["number"], row["status"], *numbers, *values]


def _marginals(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], metric: str) -> list[str]:
    """Draws one plot per key, over the trials whose point has that key."""
    varied = {key: [row for row in rows if key in row["point"]] for key in keys}
    return [marginal(chosen, key, metric) for key, chosen in varied.items() if chosen]


def _failures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    failed = [[row["number"], row["error"]] for row in rows if row["error"]]
    return ["<h2>Errors</h2>", html_table(["trial", "error"], failed)] if failed else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)
