"""How much memory is free, on the GPU or in the machine. Loads torch only for the GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def free_bytes(device: torch.device) -> int | None:
    """What this process may still take on `device`; None where that is not known."""
    if device.type != "cuda":
        return main_memory()
    import torch

    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def main_memory() -> int | None:
    """Bytes of main memory that programs may still take; None where the system does not say (it is no Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
