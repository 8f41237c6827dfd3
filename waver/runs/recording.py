"""What a run tells people while it goes on: figures, texts, pictures, points, hyper-parameters, and a trace if asked for.

The first worker has a `Recording`, the others have none. Nothing of it changes what is learned, or stops it.
"""

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.profiler import record_function
from torch.utils.tensorboard import SummaryWriter

from waver.config import ExperimentConfig
from waver.data.annotations import validation_source
from waver.data.batch import Batch
from waver.data.clip_store import ClipStore
from waver.evaluation.evaluate import Evaluation
from waver.knowledge.store import Knowledge
from waver.runs.environment import read_environment
from waver.runs.folder import best_epoch
from waver.runs.inspection import Inspection, InspectionSettings, inspect_run, to_png, write_projection
from waver.runs.tracking import Tracker, read_metrics
from waver.runs.tracking.hparams import comparable_settings, finish_hparams, write_best, write_hparams
from waver.runs.tracking.texts import best_text, command_text, config_text, data_text, environment_text, model_text
from waver.tools.memory import peak_rss
from waver.training.build import Training
from waver.training.profiling import DATA_WAIT, Profiler

LOOKED_AT = 5
"""Answers of a query that are drawn."""


class Recording:
    """Tells of one run, from where it is begun or continued to its end. Use it as a context.

    Args:
        folder: of the run.
        config: of the experiment.
        captions: its caption table.
        store: its clips.
        knowledge: of the clips; None for none.
        training: as it begins, or as its checkpoint left it.
        plan: of all epochs, for each optimizer step of the run the rows of its global batch.
        group: runs of one group differ in their seed alone.
    """

    def __init__(
        self,
        folder: Path,
        config: ExperimentConfig,
        captions: pa.Table,
        store: ClipStore,
        knowledge: Knowledge | None,
        training: Training,
        plan: Sequence[np.ndarray],
        *,
        group: str = "",
    ):
        self._folder, self._config, self._captions = folder, config, captions
        self._store, self._knowledge = store, knowledge
        self._pairs = np.cumsum([0, *map(len, plan)])
        step = training.step
        self._tracker = Tracker(folder, resume_step=step, resume_pairs=int(self._pairs[step]))
        self._profiler = Profiler(folder / "profile", config.profile.steps) if config.profile.steps else None
        self._num_failed = self._count_failed()
        self._tracker.draw(lambda events: self._introduce(events, training, group))

    def __enter__(self) -> "Recording":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        if kind is None:
            self._tracker.draw(lambda events: finish_hparams(events, end_s=time.time()))
        if self._profiler:
            with _or_warn("the trace"):
                self._profiler.__exit__(None, None, None)
        self._tracker.close()

    def watch(self, batches: Iterable[Batch], training: Training, num_steps: int) -> Iterator[Batch]:
        """The batches of the `num_steps` steps of an epoch, each of which begins a step of the trace."""
        batches = iter(batches)
        for _ in range(num_steps):
            if self._profiler:
                with _or_warn("the trace"):
                    self._profiler.step(training.step + 1)
            with record_function(DATA_WAIT):
                batch = next(batches)
            yield batch
        if self._profiler:
            self._profiler.pause()

    def after_step(self, training: Training, logs: Mapping[str, float]) -> None:
        """Logs an optimizer step."""
        pairs = int(self._pairs[training.step])
        self._tracker.log(training.step, {**logs, **_gpu(training)}, pairs=pairs, epoch=training.epoch + 1)

    def after_epoch(self, training: Training, evaluation: Evaluation) -> None:
        """Logs an evaluation and shows what the model finds."""
        pairs = int(self._pairs[training.step])
        styles = {f"styles/{style}": metrics["t2v/R@1"] for style, metrics in evaluation.styles.items()}
        here = {"clips/failed": self._num_failed, "memory_of_worker_gib": peak_rss() / 2**30}
        self._tracker.log(
            training.step,
            {**evaluation.metrics, **styles, **here},
            pairs=pairs,
            epoch=training.epoch,
            split=evaluation.split,
        )
        rows = [row for row in read_metrics(self._tracker.here) if row.get("split") == evaluation.split]
        if rows:
            epoch, metrics = best_epoch(rows)
            text = best_text(epoch, metrics, num_epochs=len(rows))
            self._tracker.draw(lambda events: events.add_text("best so far", text, training.step))
            self._tracker.draw(lambda events: write_best(events, training.step, metrics))
        if self._config.tracking.images:
            self._show(training, evaluation)
        self._tracker.flush()

    def flush(self) -> None:
        """Makes everything visible that was logged so far."""
        self._tracker.flush()

    def _introduce(self, events: SummaryWriter, training: Training, group: str) -> None:
        """What is known at the start; of a run that is continued it stands there already, and stands there again."""
        # The command of who started the run, not of this worker.
        settings, place = self._config.model_dump(mode="json"), read_environment(self._folder)
        texts = {
            "configuration": config_text(settings),
            "command": command_text(place["command"]),
            "environment": environment_text(place),
            "data": data_text(
                self._captions,
                self._store.ledger,
                validation=validation_source(self._captions),
                knowledge=self._knowledge.summary() if self._knowledge else None,
            ),
            "model": model_text(training.student),
        }
        for name, text in texts.items():
            events.add_text(name, text, training.step)
        write_hparams(events, comparable_settings(settings), start_s=time.time(), group=group)

    def _show(self, training: Training, evaluation: Evaluation) -> None:
        """Whatever goes wrong in drawing (a caption that no font can show) must not end a night's training."""
        try:
            self._draw(training, evaluation)
        except Exception as error:
            warnings.warn(f"nothing is drawn of step {training.step}: {type(error).__name__}: {error}", stacklevel=2)

    def _draw(self, training: Training, evaluation: Evaluation) -> None:
        config = self._config
        inspection = inspect_run(
            training.student,
            evaluation,
            self._captions,
            self._store,
            InspectionSettings(
                config.text.max_words, config.text.prompt, config.knowledge.top_k, config.informed_at_inference
            ),
            video=evaluation.video,
            knowledge=self._knowledge,
        )
        self._tracker.draw(lambda events: _write(events, inspection, training.step))
        with _or_warn("the projector's files"):
            write_projection(self._tracker.here / "events" / "projector", inspection.point_sets)

    def _count_failed(self) -> int:
        ledger = self._store.ledger
        failed = ledger["clip_id"].filter(pc.not_equal(ledger["status"], "ok"))
        return pc.sum(pc.is_in(pc.unique(self._captions["clip_id"]), value_set=failed)).as_py() or 0


def _write(events: SummaryWriter, inspection: Inspection, step: int) -> None:
    for tag, image in inspection.images.items():
        height, width, _ = image.shape
        # A palette makes a third of the bytes that `add_image` would.
        encoded = Summary.Image(encoded_image_string=to_png(image), height=height, width=width, colorspace=3)
        events.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=encoded)]), step)
    for tag, values in inspection.histograms.items():
        events.add_histogram(tag, values, step)
    for tag, (labels, predictions) in inspection.pr_curves.items():
        events.add_pr_curve(tag, labels, predictions, step)


def _gpu(training: Training) -> dict[str, float]:
    """Memory and utilisation of this worker's GPU; nothing on a CPU."""
    device = training.student.logit_scale.device
    if device.type != "cuda":
        return {}
    figures = {"gpu_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}
    try:
        figures["gpu_utilisation"] = float(torch.cuda.utilization(device))
    except (ModuleNotFoundError, RuntimeError):  # NVIDIA's library is not there, or does not answer
        return figures
    return figures


@contextmanager
def _or_warn(what: str) -> Iterator[None]:
    """Files that cannot be written cost a warning, not the run."""
    try:
        yield
    except OSError as error:
        warnings.warn(f"{what} cannot be written ({error}). Training goes on", stacklevel=3)
