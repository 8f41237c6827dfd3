"""Records a run for TensorBoard: metrics, texts, images, projector points, hyper-parameters, and an optional profile.

Only the first worker has a `Recording`. Recording neither changes nor stops training.
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
from waver.evaluation.confidence import beside
from waver.evaluation.evaluate import Evaluation
from waver.knowledge.store import Knowledge
from waver.runs.environment import read_environment
from waver.runs.folder import ZERO_SHOT_SPLIT, best_epoch, rivals_of_best, zero_shot_metrics
from waver.runs.inspection import Inspection, InspectionSettings, inspect_run, to_png, write_projection
from waver.runs.tracking import Tracker, read_metrics
from waver.runs.tracking.hparams import comparable_settings, write_best, write_hparams, write_session_end
from waver.runs.tracking.texts import best_text, command_text, config_text, data_text, environment_text, model_text
from waver.tools.memory import peak_rss
from waver.training.build import Training, build_tokenizer
from waver.training.profiling import DATA_WAIT, Profiler

NUM_TOP_ANSWERS = 5
"""Top answers of a query that images show."""


class Recording:
    """Records one run, from where it starts or resumes to its end. Use it as a context manager.

    Args:
        folder: run folder.
        config: configuration of the experiment.
        captions: caption table of the data set.
        store: clip store.
        knowledge: knowledge of the clips, or None to train without.
        training: initial state, or the state restored from a checkpoint.
        plan: caption rows of the global batch, for each optimizer step of all epochs.
        group: name shared by runs that differ only in their seed.
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
        self._accuracies: list[tuple[float, float]] = []
        """Accuracy within each batch since the last evaluation, of plain videos and of informed ones that teach them."""
        self._tracker.write_events(lambda events: self._introduce(events, training, group))

    def __enter__(self) -> "Recording":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        if kind is None:
            self._tracker.write_events(lambda events: write_session_end(events, end_s=time.time()))
        if self._profiler:
            with _or_warn("the trace"):
                self._profiler.__exit__(None, None, None)
        self._tracker.close()

    def trace(self, batches: Iterable[Batch], training: Training, num_steps: int) -> Iterator[Batch]:
        """Yields the batches of an epoch's next `num_steps` steps; each batch begins a step of the profile."""
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
        if "accuracy/informed" in logs:
            self._accuracies.append((logs["accuracy/plain"], logs["accuracy/informed"]))

    @property
    def has_zero_shot(self) -> bool:
        """Whether an earlier attempt at this run has logged epoch 0."""
        return zero_shot_metrics(self._tracker.local_folder) is not None

    def before_training(self, evaluation: Evaluation) -> None:
        """Logs the evaluation of the backbone before training as epoch 0, which no choice of a checkpoint reads."""
        self._tracker.log(
            0,
            {**evaluation.metrics, **_of_styles(evaluation)},
            pairs=0,
            epoch=0,
            split=ZERO_SHOT_SPLIT,
            gallery_size=evaluation.gallery_size,
            num_queries=evaluation.num_queries,
        )
        self._tracker.flush()

    def after_epoch(self, training: Training, evaluation: Evaluation) -> None:
        """Logs an evaluation, and draws retrieved clips if `tracking.images` is on."""
        pairs = int(self._pairs[training.step])
        here = {"clips/failed": self._num_failed, "memory_of_worker_gib": peak_rss() / 2**30}
        self._tracker.log(
            training.step,
            {**evaluation.metrics, **_of_styles(evaluation), **here},
            pairs=pairs,
            epoch=training.epoch,
            split=evaluation.split,
            gallery_size=evaluation.gallery_size,
            num_queries=evaluation.num_queries,
        )
        rows = [row for row in read_metrics(self._tracker.local_folder) if row.get("split") == evaluation.split]
        if rows:
            epoch, metrics = best_epoch(rows)
            remarks = [f"R@1: {beside(evaluation.gallery_size)}", *rivals_of_best(rows)]
            text = best_text(epoch, metrics, num_epochs=len(rows), remarks=remarks)
            self._tracker.write_events(lambda events: events.add_text("best so far", text, training.step))
            self._tracker.write_events(lambda events: write_best(events, training.step, metrics))
        if self._config.tracking.images:
            self._draw_or_warn(training, evaluation)
        if weak := describe_weak_teacher(self._accuracies):
            warnings.warn(f"epoch {training.epoch}: {weak}", stacklevel=2)
        self._accuracies.clear()
        self._tracker.flush()

    def flush(self) -> None:
        """Writes out everything logged so far."""
        self._tracker.flush()

    def _introduce(self, events: SummaryWriter, training: Training, group: str) -> None:
        """Writes the texts and hyper-parameters of the run; a resumed run writes them again."""
        # The command that started the run, not that of this worker.
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

    def _draw_or_warn(self, training: Training, evaluation: Evaluation) -> None:
        """Draws the inspection. Warns of any error: a caption that no font can show must not end a long training run."""
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
                build_tokenizer(config),
                config.text.max_words,
                config.text.prompt,
                config.knowledge.top_k,
                config.informed_at_inference,
            ),
            video=evaluation.video,
            knowledge=self._knowledge,
        )
        self._tracker.write_events(lambda events: _write(events, inspection, training.step))
        with _or_warn("the projector's files"):
            write_projection(self._tracker.local_folder / "events" / "projector", inspection.point_sets)

    def _count_failed(self) -> int:
        ledger = self._store.ledger
        failed = ledger["clip_id"].filter(pc.not_equal(ledger["status"], "ok"))
        return pc.sum(pc.is_in(pc.unique(self._captions["clip_id"]), value_set=failed)).as_py() or 0


def describe_weak_teacher(accuracies: Sequence[tuple[float, float]]) -> str:
    """Says that the teacher of the distillation is no better than its student; empty if it is, or nothing is known.

    Args:
        accuracies: for each batch, share of captions whose clip is the first answer, among plain and among informed videos.
    """
    if not accuracies:
        return ""
    plain, informed = (100 * float(share) for share in np.mean(accuracies, axis=0))
    if informed > plain:
        return ""
    return (
        "the teacher of loss.distill is no better than its student: in the batches of the epoch, "
        f"{informed:.1f}% of the captions find their clip among videos with fused phrases, and {plain:.1f}% among videos "
        "without. Lower loss.distill, raise loss.distill_warmup, or look at the phrases of `waver match`"
    )


def _of_styles(evaluation: Evaluation) -> dict[str, float]:
    return {f"styles/{style}": metrics["t2v/R@1"] for style, metrics in evaluation.styles.items()}


def _write(events: SummaryWriter, inspection: Inspection, step: int) -> None:
    assert events.file_writer is not None
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
    """Returns memory and utilisation of this worker's GPU; empty without a GPU."""
    device = training.student.logit_scale.device
    if device.type != "cuda":
        return {}
    metrics = {"gpu_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}
    try:
        metrics["gpu_utilisation"] = float(torch.cuda.utilization(device))
    except (ModuleNotFoundError, RuntimeError):  # NVIDIA's library is missing or does not respond
        return metrics
    return metrics


@contextmanager
def _or_warn(what: str) -> Iterator[None]:
    """Turns an OSError of the body into a warning, so that training continues."""
    try:
        yield
    except OSError as error:
        warnings.warn(f"{what} cannot be written ({error}). Training continues", stacklevel=3)
