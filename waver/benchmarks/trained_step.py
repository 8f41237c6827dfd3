"""A training step of the whole student, in fp32 and bf16, beside the conventional one and the speed of matrix products."""

import statistics
from collections.abc import Callable
from functools import partial

import torch

from waver.benchmarks.context import Context
from waver.benchmarks.students import Setup, build_setup, conventional_step
from waver.benchmarks.table import Row, not_measured, rows_of
from waver.benchmarks.timing import Timing, take_turns
from waver.config import ExperimentConfig
from waver.training.cost import training_cost
from waver.training.step import train_step

FP32, BF16, CONVENTIONAL = "fp32", "bf16", "conventional, fp32"


def measure_trained_step(context: Context) -> list[Row]:
    """Measures seconds of a step, and how much of the speed of a matrix product it reaches."""
    sizes, work = context.sizes, f"step, {context.sizes.trained_pairs} pairs, CPU"
    setup = build_setup(context, sizes.trained_pairs)
    batch = next(setup.batches(setup.clips, sizes.trained_pairs, 1))
    dtypes = {FP32: torch.float32} | ({BF16: torch.bfloat16} if computes_bf16() else {})
    configs = {way: with_precision(setup.config, way) for way in dtypes}
    ways: dict[str, Callable[[], object]] = {
        way: partial(train_step, setup.training, batch, config) for way, config in configs.items()
    }
    missing = [] if BF16 in ways else [not_measured(work, BF16, "the processor has no instructions for bf16")]
    if context.conventional:
        ways[CONVENTIONAL] = conventional_step(context.conventional, setup, sizes.trained_pairs)
        dtypes[CONVENTIONAL] = torch.float32
    else:
        missing.append(not_measured(work, CONVENTIONAL, context.why_not))
    limits = {str(dtype): product(sizes.matmul, dtype) for dtype in set(dtypes.values())}
    found = take_turns(ways | limits, context.repeats, warm_up=False)  # steps take seconds
    flops = step_flops(setup, sizes.trained_pairs)
    notes = {way: describe_speed(flops, found[way], sizes.matmul, found[str(dtype)]) for way, dtype in dtypes.items()}
    steps = {way: found[way] for way in ways}
    reference = CONVENTIONAL if context.conventional else FP32
    return [*rows_of(work, steps, reference=reference, targets={FP32: "1.2"}, notes=notes), *missing]


def computes_bf16() -> bool:
    """Returns whether oneDNN computes bf16 on this processor; otherwise torch takes a hundred times as long as for fp32."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def with_precision(config: ExperimentConfig, precision: str) -> ExperimentConfig:
    """Returns the configuration with another `train.precision`."""
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})


def step_flops(setup: Setup, num_pairs: int) -> float:
    """Returns the floating-point operations of a step, by `training_cost`; captions count as of full length."""
    train = setup.config.train.model_copy(update={"global_batch_size": num_pairs})
    cost = training_cost(setup.config.model_copy(update={"train": train}), setup.captions)
    return cost.training_flops / cost.num_pairs * num_pairs


def product(side: int, dtype: torch.dtype, device: str = "cpu") -> Callable[[], object]:
    """Returns a function that multiplies two square matrices."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: torch.mm(left, right)


def describe_speed(flops: float, timing: Timing, side: int, limit: Timing) -> str:
    """Says what share of the speed of a matrix product a step reaches, by the median of the turns."""
    speeds = [flops / seconds for seconds in timing.wall_s]
    limits = [2 * side**3 / seconds for seconds in limit.wall_s]
    share = statistics.median(speed / peak for speed, peak in zip(speeds, limits, strict=True))
    return (
        f"{statistics.median(speeds) / 1e9:.0f} GFLOP/s, {share:.0%} of a matrix product of {side} cubed "
        f"({statistics.median(limits) / 1e9:.0f})"
    )
