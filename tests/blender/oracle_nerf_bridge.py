"""The real `nerf-bridge`, all of it, with the tests' oracle in place of the prior and a short film: takes seconds."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_run import CountingOracle, shorten_turntable

from nerf_bridge import cli, pipeline

if __name__ == "__main__":
    shorten_turntable(pytest.MonkeyPatch())
    pipeline.generate = functools.partial(pipeline.generate, prior=CountingOracle())
    sys.exit(cli.main())
