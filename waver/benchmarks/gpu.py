"""A training step on a GPU: ViT-B/32 and ViT-B/16 in bf16, eager and compiled; clips per second, MFU and peak memory.

MFU (model FLOPs utilisation) is the share of the GPU's peak that the operations of the model need, forward and backward; see
`waver.training.cost`. The peak is the dense bf16 figure of the vendor or, of an unknown GPU, the measured speed of a matrix
product, which the remark then says.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable

import torch

from waver.benchmarks.context import Context
from waver.benchmarks.students import build_setup
from waver.benchmarks.table import Row, not_measured
from waver.benchmarks.trained_step import product, step_flops, with_precision
from waver.training.step import train_step

BACKBONES = {"ViT-B/32": "ViT-B-32-quickgelu", "ViT-B/16": "ViT-B-16-quickgelu"}
PEAK_TFLOPS = {"H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "A10": 125.0}
"""Part of the name of a GPU -> TFLOP/s in bf16, dense, by the vendor's data sheet; more special names first."""
_MATMUL, _MATMUL_CPU = 8192, 256
_STEPS_PER_TURN = 10
TARGET = "MFU 45%"


def measure_gpu(context: Context) -> list[Row]:
    """Measures each backbone if there is a GPU; else the rows say that it was not run."""
    pairs = context.sizes.gpu_pairs
    names = {name: f"step on a GPU, {name}, {pairs} pairs, bf16" for name in BACKBONES}
    if not torch.cuda.is_available():
        return [not_measured(work, "waver", "no GPU") for work in names.values()]
    rows = []
    for name, backbone in BACKBONES.items():
        sizes = dataclasses.replace(context.sizes, backbone=backbone)
        folder = context.folder / name.replace("/", "")
        folder.mkdir()
        rows += measure_on_device(dataclasses.replace(context, sizes=sizes, folder=folder), names[name], "cuda")
    return rows


def measure_on_device(context: Context, work: str, device: str, *, compiler: str = "inductor") -> list[Row]:
    """Measures steps of one batch, which is copied to the device in each step, eager and compiled.

    Args:
        context: sizes, with the backbone.
        work: name of the rows.
        device: device of the student; on a CPU there is no figure of memory.
        compiler: backend of `torch.compile`.
    """
    pairs = context.sizes.gpu_pairs
    setup = build_setup(context, pairs, device=device)
    config = with_precision(setup.config, "bf16")
    batch = next(setup.batches(setup.clips, pairs, 1))
    peak, source = peak_speed(device)
    flops = step_flops(setup, pairs)
    rows, student = [], setup.training.student
    for way, forward in (("eager", student), ("compiled", torch.compile(student, backend=compiler))):
        setup.training.forward = forward
        seconds, peak_bytes = _time_steps(lambda: train_step(setup.training, batch, config), context.repeats, device)
        speed = flops / statistics.median(seconds)
        notes = [
            f"{pairs / statistics.median(seconds):,.0f} clips/s",
            f"MFU {speed / peak:.1%} of {peak / 1e12:,.0f} TFLOP/s ({source})",
            f"peak memory {peak_bytes / 2**30:.1f} GiB" if peak_bytes else "",
        ]
        rows.append(Row(work, way, "s", seconds, target=TARGET, note=", ".join(filter(None, notes))))
    return rows


def _time_steps(step: Callable[[], object], repeats: int, device: str) -> tuple[tuple[float, ...], int]:
    """Returns seconds per step in each turn, and the peak memory of the device in bytes; 0 if it is unknown."""
    on_gpu = device == "cuda"
    number = _STEPS_PER_TURN if on_gpu else 1
    for _ in range(3 if on_gpu else 1):  # compiles, and chooses kernels
        step()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        _wait(device)
        started = time.perf_counter()
        for _ in range(number):
            step()
        _wait(device)
        seconds.append((time.perf_counter() - started) / number)
    return tuple(seconds), torch.cuda.max_memory_allocated() if on_gpu else 0


def peak_speed(device: str) -> tuple[float, str]:
    """Returns the peak of a device in bf16, FLOP/s, and where the figure comes from."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    for part, tflops in PEAK_TFLOPS.items():
        if part in name:
            return tflops * 1e12, f"the vendor's figure for {name}"
    side = _MATMUL if device == "cuda" else _MATMUL_CPU
    multiply = product(side, torch.bfloat16, device)
    seconds, _ = _time_steps(multiply, 5, device)
    return 2 * side**3 / statistics.median(seconds), f"measured with a matrix product of {side} cubed"


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
