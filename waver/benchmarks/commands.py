"""Whole commands of waver, in a temporary folder: the quickstart, a training run beside its steps, and a sweep."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from waver.benchmarks.context import Context
from waver.benchmarks.table import Row, not_measured
from waver.config import load_config
from waver.tools.errors import WaverError
from waver.training.plan import pairs_per_epoch

SWEEP = Path("experiments") / "sweeps" / "quickstart.yaml"
_TARGETS = {"quickstart": "90 s", "sweep": "40 s", "train": "15 s beside its steps"}
_LAST_LINES = 5


class CommandError(WaverError):
    """A command that is measured has failed."""


def measure_commands(context: Context) -> list[Row]:
    """Runs each command once, since they take minutes; the sweep and the training run use the quickstart's data."""
    sweep, folder = SWEEP.absolute(), context.folder  # the commands run in that folder
    quickstart_s = run_command(["quickstart"], folder)
    rows = [Row("`waver quickstart`", "waver", "s", (quickstart_s,), target=_TARGETS["quickstart"])]
    config = folder / "quickstart" / "runs" / "quickstart" / "config.yaml"
    arguments = ["train", str(config), "--set", "name=again", "--workers", "1"]
    train_s = run_command(arguments, folder)
    steps_s = seconds_of_steps(folder / "quickstart" / "runs" / "again")
    rows.append(
        Row(
            "`waver train` beside its steps, the quickstart's run with knowledge, 1 worker",
            "waver",
            "s",
            (train_s - steps_s,),
            target=_TARGETS["train"],
            note=f"{train_s:.1f} s in all, {steps_s:.1f} s of steps",
        )
    )
    work = "sweep of the quickstart, 12 trials"
    if not sweep.is_file():
        return [*rows, not_measured(work, "waver", f"there is no {SWEEP} here")]
    sweep_s = run_command(["tune", str(sweep)], folder)
    return [*rows, Row(work, "waver", "s", (sweep_s,), target=_TARGETS["sweep"])]


def run_command(arguments: Sequence[str], folder: Path) -> float:
    """Runs a command of waver in a folder; returns its seconds.

    Raises:
        CommandError: if it fails; the message has the end of its output.
    """
    package = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "waver", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        last = "\n  ".join((done.stderr or done.stdout).splitlines()[-_LAST_LINES:])
        raise CommandError(f"`waver {' '.join(arguments)}` has failed with exit code {done.returncode}:\n  {last}")
    return seconds


def seconds_of_steps(run: Path) -> float:
    """Returns the seconds of the steps of a run, from its logs."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    speeds = [row["clips_per_s"] for row in rows if "clips_per_s" in row]
    config, data = load_config(run / "config.yaml", stored=True), result["data"]
    pairs = pairs_per_epoch(config, data["num_train_clips"], data["num_train_captions"]) * result["epochs"]
    # The batches of an epoch or a pass differ in size by one pair at most.
    return sum(pairs / len(speeds) / speed for speed in speeds)
