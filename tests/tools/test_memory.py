import subprocess
import sys
import time

import psutil

from waver.tools import memory
from waver.tools.memory import available_memory, memory_of_tree, peak_rss, sample_peak_memory

MIB = 2**20


def test_children_count_and_shared_memory_counts_once():
    code = "block = bytearray(200 * 2**20); print('ready', flush=True); input()"
    before = memory_of_tree()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        grown = memory_of_tree() - before
        child.communicate(b"\n")
    assert 190 * MIB < grown < 260 * MIB


def test_the_peak_of_the_body_is_kept(monkeypatch):
    monkeypatch.setattr(memory, "_SAMPLE_EVERY_S", 0.01)
    with sample_peak_memory() as sampled:
        block = bytearray(100 * MIB)
        time.sleep(0.5)
        del block
    assert sampled.peak >= 100 * MIB


def test_available_memory_is_within_machine_and_container(tmp_path, monkeypatch):
    assert 0 < available_memory() <= psutil.virtual_memory().total
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", limit)
    limit.write_text("max\n")
    assert available_memory() > 1000
    limit.write_text("1000\n")
    assert available_memory() == 1000


def test_the_peak_of_this_process_is_in_bytes():
    assert peak_rss() > 50 * MIB
