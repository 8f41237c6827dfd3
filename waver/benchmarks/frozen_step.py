"""A training step with a frozen backbone: from pixels, from stored frames, and from stored captions too.

A step of waver includes reading its batch. The batch of the conventional step is in memory, decoded, before it begins.
"""

from collections.abc import Callable

from waver.benchmarks.context import Context
from waver.benchmarks.students import build_setup, conventional_step, embed
from waver.benchmarks.table import Row, not_measured, rows_of
from waver.benchmarks.timing import take_turns
from waver.data.embedded_clips import EmbeddedClips

PIXELS, FRAMES, CAPTIONS, CONVENTIONAL = "pixels", "stored frames", "stored frames and captions", "conventional"


def measure_frozen_step(context: Context) -> list[Row]:
    """Measures seconds of a step."""
    num_pairs = context.sizes.frozen_pairs
    setup = build_setup(context, 2 * num_pairs, settings={"train": {"backbone_lr_scale": 0, "precision": "fp32"}})
    stored = embed(setup, context.folder, tokens=True)
    number = context.repeats
    ways: dict[str, Callable[[], object]] = {
        PIXELS: setup.stepper(setup.batches(setup.clips, num_pairs, number)),
        FRAMES: setup.stepper(setup.batches(EmbeddedClips(setup.clips, stored.frames), num_pairs, number)),
        CAPTIONS: setup.stepper(setup.batches(stored, num_pairs, number)),
    }
    if context.conventional:
        ways[CONVENTIONAL] = conventional_step(context.conventional, setup, num_pairs)
    work = f"step with a frozen backbone, {num_pairs} pairs, CPU fp32"
    targets = {FRAMES: "32", CAPTIONS: "80"}
    found = take_turns(ways, context.repeats, warm_up=False)  # steps from pixels take seconds
    rows = rows_of(work, found, reference=PIXELS, targets=targets)
    return rows if context.conventional else [*rows, not_measured(work, CONVENTIONAL, context.why_not)]
