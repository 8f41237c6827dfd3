"""Profiles training steps with torch's profiler; writes a trace for Perfetto (ui.perfetto.dev) or chrome://tracing.

The parts of a step are named, so that the traces of all runs have the same blocks: `with record_function(FORWARD): ...`,
which costs about 12 microseconds while no profiler records.
"""

import gzip
import shutil
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from waver.tools.errors import WaverError
from waver.tools.files import atomic_write

DATA_WAIT, FORWARD, LOSS, BACKWARD = "data wait", "forward", "loss", "backward"
ALL_REDUCE, OPTIMIZER = "all-reduce", "optimizer"
ALL_GATHER = "all-gather"
PARTS = (DATA_WAIT, FORWARD, LOSS, BACKWARD, ALL_REDUCE, OPTIMIZER)
"""Names of the parts of a training step, in their order, for torch's `record_function`."""
STEP = "step"
MAX_STEPS = 50
"""Maximum number of steps in one trace: viewers do not open larger ones."""


class ProfileError(WaverError):
    """The requested steps cannot be profiled."""


class Profiler:
    """Records steps `first` to `last` and writes them as one trace; other steps are not recorded.

    Call `step` before each step, with its number. As a context manager it also writes the trace of a run that ends within
    the recorded steps.

    Args:
        folder: receives `steps_<first>_to_<last>.pt.trace.json.gz`, with the rank of the process in the name if there are
            several. TensorBoard's and Holistic Trace Analysis' readers look for this suffix.
        steps: first and last step, from 1; both are recorded.
        rank: rank of this process among several; None for a single process.

    Raises:
        ProfileError: if `steps` is not a range that starts at 1 or later, or has more than MAX_STEPS.
    """

    def __init__(self, folder: Path, steps: tuple[int, int], *, rank: int | None = None):
        first, last = steps
        if not 1 <= first <= last:
            raise ProfileError(
                f"steps {first} to {last} cannot be profiled: the first must be at least 1, and the last not before it"
            )
        if last - first + 1 > MAX_STEPS:
            raise ProfileError(
                f"{last - first + 1} steps to profile are more than {MAX_STEPS}: a step takes megabytes, and viewers do "
                f"not open traces of so many. Profile fewer, such as {first} to {first + 4}"
            )
        self._folder, self._first, self._last, self._rank = folder, first, last, rank
        self._profile: profile | None = None
        self._done: list[int] = []
        self._now: record_function | None = None

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end_step()
        self._write()

    def step(self, number: int) -> None:
        """Ends the previous step and starts step `number`."""
        self._end_step()
        if self._profile is None and self._first <= number <= self._last and not self._done:
            self._start()
        if self._profile is not None and number <= self._last:
            self._done.append(number)
            self._now = record_function(f"{STEP} {number}")
            self._now.__enter__()
        elif self._profile is not None:
            self._write()

    def pause(self) -> None:
        """Ends the current step: what follows, such as an evaluation, belongs to no step."""
        self._end_step()

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        # Shapes, stacks and memory would make the trace ten times as large.
        self._profile = profile(activities=activities)
        self._profile.start()

    def _end_step(self) -> None:
        if self._now is not None:
            self._now.__exit__(None, None, None)
            self._now = None

    def _write(self) -> None:
        """Stops recording and writes the trace; gzip compresses torch's JSON to a tenth."""
        if self._profile is None:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # kernels started in these steps belong to them
        self._profile.stop()
        rank = "" if self._rank is None else f"_rank_{self._rank}"
        target = self._folder / f"steps_{self._done[0]}_to_{self._done[-1]}{rank}.pt.trace.json.gz"
        with tempfile.TemporaryDirectory() as scratch:
            plain = Path(scratch) / "trace.json"
            self._profile.export_chrome_trace(str(plain))
            with (
                plain.open("rb") as source,
                atomic_write(target) as file,
                gzip.GzipFile(fileobj=file, mode="wb") as packed,
            ):
                shutil.copyfileobj(source, packed)
        self._profile = None
