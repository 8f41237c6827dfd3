"""Checks that a sweep is the one in its folder, or extends it: trials may be added, and those there keep their meaning."""

from pathlib import Path
from typing import Any

from waver.config import ExperimentConfig, SweepConfig, load_config, load_sweep
from waver.sweeps.folder import SweepError
from waver.sweeps.then import check_then
from waver.tools.files import read_json, write_json
from waver.tools.section import describe_differences, flatten

_EXTENDING = ("num_samples", "max_concurrent", "max_failures", "keep_best", "then")
"""Keys of a sweep that do not change what a searched trial means; num_samples may only grow."""
_IN_THE_BASE = ("base", "set")
"""Keys of a sweep whose effect is in the configuration of the base experiment."""


def open_sweep(folder: Path, sweep: SweepConfig, base: ExperimentConfig) -> None:
    """Creates the folder of a new sweep, or checks that an existing folder holds the same sweep and notes what extends it.

    Raises:
        SweepError: see `check_sweep`.
    """
    check_sweep(folder, sweep, base)
    folder.mkdir(parents=True, exist_ok=True)
    counts = sample_counts(folder, sweep)
    if len(counts) > 1:  # first, so that a crash before the next line leaves no trial without its place in the order
        write_json(folder / "samples.json", counts)
    # The path of the base experiment may change; base.yaml holds its content.
    texts = {"sweep.yaml": sweep.model_copy(update={"base": Path("base.yaml")}).to_yaml(), "base.yaml": base.to_yaml()}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def check_sweep(folder: Path, sweep: SweepConfig, base: ExperimentConfig) -> None:
    """Checks that a folder is free, or that a sweep continues or extends the one in it. Writes nothing.

    Args:
        folder: of the sweep.
        sweep: configuration of the sweep.
        base: configuration of its base experiment.

    Raises:
        SweepError: if the folder holds trials that mean something else, or more trials; also if its best trials cannot be
            fine-tuned as the sweep asks, see `check_then`.
    """
    if not _has_begun(folder):
        return
    there, asked = load_sweep(folder / "sweep.yaml"), sweep
    kept = [key for key in SweepConfig.model_fields if key not in (*_EXTENDING, *_IN_THE_BASE)]
    different = describe_differences(there.model_dump(include=set(kept)), asked.model_dump(include=set(kept)))
    different += describe_differences(
        _meaning(load_config(folder / "base.yaml", stored=True), sweep), _meaning(base, sweep)
    )
    before = sample_counts(folder, there)[-1]
    if sweep.search != "grid" and sweep.num_samples < before:
        different.append(f"num_samples: {before} in the folder, {sweep.num_samples} now, which can only grow")
    if different:
        raise SweepError(
            f"{folder} holds a sweep whose trials mean something else ({'; '.join(different)}): choose another name (--set "
            "name=...), or delete the folder. A sweep keeps its name if num_samples grows, and if max_concurrent, "
            "max_failures, keep_best, then or settings without effect on metrics change"
        )
    check_then(folder, sweep)


def sample_counts(folder: Path, sweep: SweepConfig) -> list[int]:
    """Returns num_samples of a sweep in the order in which it grew, that of its present configuration last.

    The points that a random search adds are drawn after those that are there, which so keep their numbers.
    """
    counts: list[int] = []
    if _has_begun(folder):
        path = folder / "samples.json"
        counts = read_json(path) if path.exists() else [load_sweep(folder / "sweep.yaml").num_samples]
    return [*counts, sweep.num_samples] if not counts or sweep.num_samples > counts[-1] else counts


def _has_begun(folder: Path) -> bool:
    return (folder / "trials").exists()


def _meaning(base: ExperimentConfig, sweep: SweepConfig) -> dict[str, Any]:
    """Returns the settings of the base experiment that decide what its trials mean."""
    settings = base.identity()
    del settings["name"]  # trials are named after the sweep
    if any(key.startswith("loss.") for key in sweep.space):  # settings of a term count where trials give it a weight
        settings["loss"] = base.loss.model_dump(mode="json")
    if sweep.search == "optuna":  # Tune resumes its trials with the resources that they began with
        settings["resources"] = base.resources.model_dump(mode="json")
    return flatten(settings)
