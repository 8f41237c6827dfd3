"""Writes the checkpoints of a run."""

import shutil
from pathlib import Path

from waver.config import ExperimentConfig
from waver.knowledge.store import Knowledge
from waver.runs.checkpoint import save_checkpoint
from waver.runs.folder import checkpoint_name, keep_checkpoint, newest_checkpoint
from waver.runs.recording import Recording
from waver.tools.lock import check_lock, find_lock
from waver.training.build import Training


class CheckpointSaver:
    """Writes the checkpoints of a run and, before each, the logs up to its step.

    Every worker must call it equally often; rank 0 writes.

    The checkpoint at the end of an epoch is written once, before the evaluation, under the name of its step. After the
    evaluation it is renamed to that of the epoch.

    Args:
        folder: run folder.
        config: configuration of the experiment.
        training: state of the run.
        knowledge: knowledge of the clips; None for none.
        recording: of rank 0; None on other workers.
    """

    def __init__(
        self,
        folder: Path,
        config: ExperimentConfig,
        training: Training,
        knowledge: Knowledge | None,
        recording: Recording | None,
    ) -> None:
        self._folder, self._config = folder, config
        self._training, self._knowledge, self._recording = training, knowledge, recording
        self._lock = find_lock(folder) if recording else None
        self._saved: str | None = None
        """Name of the checkpoint that this process wrote last."""

    def save_step(self) -> None:
        """Writes the checkpoint of the current step, within an epoch or before the evaluation at its end."""
        self._write(checkpoint_name(self._training.epoch, self._training.step))

    def save_epoch(self) -> None:
        """Renames the checkpoint of the current step to that of the epoch; writes it if another process wrote the former."""
        of_step = checkpoint_name(self._training.epoch - 1, self._training.step)
        of_epoch = checkpoint_name(self._training.epoch)
        if self._saved != of_step:  # an earlier process wrote it, perhaps on another machine
            self._write(of_epoch)
            return
        self._flush()
        if self._recording:
            keep_checkpoint(self._folder, self._folder / of_step, of_epoch)

    def _write(self, name: str) -> None:
        self._flush()
        part = self._folder / ".checkpoint.part"
        if self._recording:
            shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
        previous = newest_checkpoint(self._folder) if self._recording else None
        save_checkpoint(part, self._training, self._config, self._knowledge, previous=previous)
        if self._recording:
            keep_checkpoint(self._folder, part, name)
        self._saved = name

    def _flush(self) -> None:
        """Writes the logs: a run that resumes from a checkpoint needs those up to its step."""
        if self._lock:
            check_lock(self._lock)
        if self._recording:
            self._recording.flush()
