"""When this process began."""

from __future__ import annotations

import os
import time
from pathlib import Path

_LOADED = time.time()


def process_began(proc: Path = Path("/proc")) -> float:
    """When this process began, in seconds since 1970, to a hundredth of a second.

    Where the system does not tell (outside of Linux): when this module was loaded, some tenths of a second later.

    Args:
        proc: the folder of the system's process files.
    """
    try:
        after_name = (proc / "self" / "stat").read_text().rpartition(")")[2].split()
        ticks = int(after_name[19])  # field 22 of proc(5), since the boot
        up = float((proc / "uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _LOADED
    return min(time.time() - (up - ticks / os.sysconf("SC_CLK_TCK")), _LOADED)
