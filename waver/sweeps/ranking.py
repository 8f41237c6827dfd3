"""Ranks the trials of a sweep by their objective, and says what stands beside it."""

from collections.abc import Iterable, Sequence
from statistics import mean, stdev

from waver.config import SweepConfig
from waver.evaluation.confidence import beside, describe_rivals
from waver.sweeps.folder import TrialState

_ORDER = ("finished", "stopped", "running", "interrupted", "failed")


def mean_objective(state: TrialState, sweep: SweepConfig) -> float | None:
    """Returns the mean of the objective over the seeds that have ended an epoch; None if no seed has."""
    values = state.values(sweep.objective.metric)
    return mean(values) if values else None


def objective_deviation(state: TrialState, sweep: SweepConfig) -> float | None:
    """Returns the standard deviation of the objective over seeds; None for fewer than two seeds."""
    values = state.values(sweep.objective.metric)
    return stdev(values) if len(values) > 1 else None


def rank_trials(states: Sequence[TrialState], sweep: SweepConfig) -> list[TrialState]:
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


def rivals_of_best(states: Sequence[TrialState], sweep: SweepConfig) -> list[str]:
    """Says which finished trials tie with the best, or are within its standard error, see `describe_rivals`.

    Args:
        states: all searched, or all fine-tuned trials of a sweep.
        sweep: configuration of the sweep.
    """
    ranked = [state for state in rank_trials(states, sweep) if state.status == "finished"]
    values = {state.number: value for state in ranked if (value := mean_objective(state, sweep)) is not None}
    if not values:
        return []
    best = ranked[0]
    num_clips, num_captions = best.gallery or (None, None)
    metric = sweep.objective.metric
    found = describe_rivals(values, best.number, metric, what="trial", num_clips=num_clips, num_captions=num_captions)
    return [f"best.yaml is trial {best.number}, but {'; '.join(found)}"] if found else []


def loss_by_fine_tuning(
    searched: Sequence[TrialState], fine_tuned: Sequence[TrialState], sweep: SweepConfig
) -> list[str]:
    """Says that the best trial of the search is better than the best fine-tuned one; empty if it is not, or none ended."""
    best, tuned = (
        next((state for state in rank_trials(states, sweep) if state.status == "finished"), None)
        for states in (searched, fine_tuned)
    )
    if best is None or tuned is None:
        return []
    before, after = mean_objective(best, sweep), mean_objective(tuned, sweep)
    sign = 1 if sweep.objective.mode == "max" else -1
    if before is None or after is None or sign * (after - before) >= 0:
        return []
    return [
        f"fine-tuning lost: the best searched trial, {best.number}, has {sweep.objective.metric} {before:.2f}, the best "
        f"fine-tuned one, of trial {tuned.number}, {after:.2f}"
    ]
