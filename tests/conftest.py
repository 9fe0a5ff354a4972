"""Leaves out, and says so, the tests that need what this machine does not have: a CUDA GPU or a compiler."""

from __future__ import annotations

import pytest
import torch

from nerf_bridge.ops import build


def _missing() -> dict[str, str]:
    """Why the tests of a marker cannot run here, by marker; empty where everything is there."""
    reasons = {}
    for marker, kind in (("compiler", "cpu"), ("nvcc", "cuda"), ("cuda", "cuda")):
        try:
            build.find_compiler(kind)
        except build.BuildError as error:
            reasons[marker] = str(error)
    if not torch.cuda.is_available():
        reasons["cuda"] = "torch sees no CUDA GPU"
    return reasons


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "compiler: needs a C++ compiler; left out where there is none")
    config.addinivalue_line("markers", "nvcc: needs nvcc, but no GPU; left out where there is none")


def pytest_report_header() -> list[str]:
    return [f"tests marked {marker!r} are left out: {reason}" for marker, reason in _missing().items()]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = _missing()
    left_out = [item for item in items if any(item.get_closest_marker(marker) for marker in missing)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
