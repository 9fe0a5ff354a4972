"""When the process began."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from nerf_bridge.run import clock
from nerf_bridge.run.clock import process_began

PROGRAM = "import time; time.sleep(0.3); from nerf_bridge.run.clock import process_began; print(process_began())"


def test_the_time_before_the_first_import_counts() -> None:
    before = time.time()
    told = float(subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout)
    assert before - 0.05 <= told <= time.time() - 0.25


@pytest.mark.parametrize("stat", [None, "1 (python) S", "1 (a ) b) " + "x " * 30])
def test_where_the_system_does_not_tell_it_is_when_the_module_was_loaded(stat: str | None, tmp_path: Path) -> None:
    if stat is not None:
        (tmp_path / "self").mkdir()
        (tmp_path / "self" / "stat").write_text(stat)
    assert process_began(tmp_path) == clock._LOADED
