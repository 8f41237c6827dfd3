"""Writes metrics.jsonl and the events of TensorBoard.

Only the first worker writes. A run that is resumed continues both files where its checkpoint was: what a killed run had
logged beyond it is taken back first, so every step stands there once.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from waver.files import write_text


class Tracker:
    """Writes scalars by optimizer step to `metrics.jsonl` and to TensorBoard.

    Args:
        folder: of the run; TensorBoard's events go to `events/` in it.
        resume_step: optimizer steps of the checkpoint that the run continues; later entries are removed.
    """

    def __init__(self, folder: Path, *, resume_step: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        _truncate(self._path, resume_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(folder / "events"), purge_step=resume_step + 1)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def log(self, step: int, scalars: Mapping[str, float], **labels: str | int) -> None:
        """Writes scalars of a step; labels (epoch, split) stand beside them in metrics.jsonl only."""
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)
        self._file.write(json.dumps({"step": step, **labels, **scalars}) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Makes everything visible that was logged so far."""
        self._events.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Nothing is logged after this."""
        self.flush()
        self._events.close()
        self._file.close()


def read_metrics(folder: Path) -> Iterable[dict]:
    """The rows of a run's metrics.jsonl, oldest first; a last line that a crash cut short is left out."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines[:-1]]  # every whole line ends in a newline


def _truncate(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [row for row in read_metrics(path.parent) if row["step"] <= step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
