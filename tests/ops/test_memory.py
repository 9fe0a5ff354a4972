"""Keeping freed memory: taken where there is glibc, harmless elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys

from nerf_bridge.ops import memory

PAGE_FAULTS = """
import resource, sys, torch
from nerf_bridge.ops.memory import keep_freed_memory
taken = sys.argv[1] == "keep" and keep_freed_memory()
for _ in range(2): torch.empty(350000, 24).fill_(1.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): torch.empty(350000, 24).fill_(1.0)
print(int(taken), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> tuple[bool, int]:
    """Whether the C library took the settings, and the faults of ten tensors of 33 MB."""
    command = [sys.executable, "-c", PAGE_FAULTS, mode]
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    taken, faults = done.stdout.split()
    return taken == "1", int(faults)


def test_large_tensors_take_their_memory_without_page_faults():
    taken, faults = page_faults("keep")
    _, by_default = page_faults("default")
    assert faults < by_default / 10 if taken else faults > 0


def test_other_systems_are_left_as_they_are(monkeypatch):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False
