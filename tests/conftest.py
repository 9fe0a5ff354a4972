"""Leaves out, and says so, the tests that need what is not here: a compiler, a GPU, Blender, a browser, a validator.

And the tiny models of every family, built once for all tests.
"""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mesh import khronos
from run.headless_browser import CHROMIUM, DRIVER

from nerf_bridge.ops import build, peers

LARGE_GPU_BYTES = 120 << 30


def _missing() -> dict[str, str]:
    """Why the tests of a marker cannot run here, by marker; empty where everything is there."""
    reasons = {}
    for marker, kind in (("compiler", "cpu"), ("nvcc", "cuda"), ("cuda", "cuda")):
        try:
            build.find_compiler(kind)
        except build.BuildError as error:
            reasons[marker] = str(error)
    if "compiler" in reasons:  # nvcc calls it
        reasons = dict.fromkeys(("nvcc", "cuda"), reasons["compiler"]) | reasons
    if not torch.cuda.is_available():
        reasons["cuda"] = reasons["large_gpu"] = "torch sees no CUDA GPU"
    elif torch.cuda.mem_get_info()[0] < LARGE_GPU_BYTES:
        reasons["large_gpu"] = f"less than {LARGE_GPU_BYTES >> 30} GiB of GPU memory are free"
    if torch.cuda.device_count() < 2:
        reasons["multi_gpu"] = "torch sees fewer than two GPUs"
    reasons |= {name: f"{name}: {peers.load(name).cause}" for name in peers.MODULES if peers.load(name).cause}
    if importlib.util.find_spec("triton") is None:
        reasons["triton"] = "the package triton is not installed"
    if importlib.util.find_spec("bpy") is None:
        reasons["blender"] = "the module bpy is not installed, see CONTRIBUTING.md"
    if not (CHROMIUM and DRIVER):
        reasons["browser"] = "chromium or chromedriver is not installed"
    if (reason := khronos.why_missing()) is not None:
        reasons["validator"] = reason
    return reasons


def pytest_configure() -> None:
    """Let Ctrl-C work, which a shell turns off in what it starts in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> list[str]:
    return [f"tests marked {marker!r} are left out: {reason}" for marker, reason in _missing().items()]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = _missing()
    left_out = [item for item in items if any(item.get_closest_marker(marker) for marker in missing)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # so that no worker is left alone with a long file at the end


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the tiny pipeline of a family; not to be changed."""
    from prior.models import tiny_models  # imports diffusers' pipelines: only where they are used

    root = tmp_path_factory.mktemp("models")
    built: dict[str, Path] = {}

    def folder_of(family: str) -> Path:
        if family not in built:
            built[family] = tiny_models.build(family, root / family)
        return built[family]

    return folder_of
