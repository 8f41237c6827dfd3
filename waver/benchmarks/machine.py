"""Describes the machine that a benchmark runs on."""

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import psutil
import torch

_CPU_INFO = Path("/proc/cpuinfo")


def describe_machine() -> dict[str, Any]:
    """Returns date, processor, number of cores, memory, load, and versions of Python and torch."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def machine_line(machine: dict[str, Any]) -> str:
    """Returns the description in a sentence."""
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    return (
        f"{machine['date']}; {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {gpus}; torch "
        f"{machine['torch']} with {machine['threads']} threads, Python {machine['python']}; load {machine['load']} at the "
        "start."
    )


def _cpu_model() -> str:
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
