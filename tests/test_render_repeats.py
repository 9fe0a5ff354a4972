"""With deterministic algorithms a whole render, there and back, repeats to the last bit, in other processes too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import deterministic_render
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "size"),
    [pytest.param("cpu", 16, marks=pytest.mark.compiler), pytest.param("cuda", 64, marks=pytest.mark.cuda)],
)
def test_a_render_and_its_gradients_repeat_to_the_last_bit(device, size):
    """On a GPU cuBLAS wants its workspace to be settled before its first use: hence processes of their own."""
    places = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONPATH": places}
    command = [sys.executable, deterministic_render.__file__, device, str(size)]
    lines = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        lines += done.stdout.splitlines()
    assert len(lines) == 2 * deterministic_render.ROUNDS and len(set(lines)) == 1
    assert len(set(lines[0].split())) == len(deterministic_render.SHADINGS)
