import os

import torch

from waver.benchmarks.machine import describe_machine, machine_line


def test_the_machine_is_described():
    machine = describe_machine()
    assert 1 <= machine["cores"] <= os.cpu_count()
    assert machine["threads"] == torch.get_num_threads()
    assert machine["memory_gib"] > 0.5
    line = machine_line(machine)
    assert all(str(machine[name]) in line for name in ("date", "cpu", "torch", "python"))
