"""Choosing and loading a backend, and what the callers see when it cannot be had."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nerf_bridge.errors import UserError
from nerf_bridge.ops import backend, build


@pytest.fixture(autouse=True)
def forgotten():
    """Every test starts and ends without remembered libraries, failures and log lines."""
    for cached in (backend.load, backend._log_once, backend._function):
        cached.cache_clear()
    yield
    for cached in (backend.load, backend._log_once, backend._function):
        cached.cache_clear()


@pytest.fixture
def without_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(backend, "PREBUILT_DIR", tmp_path / "none")


@pytest.mark.compiler
def test_auto_takes_the_kernels_of_the_device_and_says_so_once(caplog):
    caplog.set_level(logging.INFO)
    assert backend.resolve_backend("auto", "cpu") == "cpu" == backend.resolve_backend("auto", torch.device("cpu"))
    assert [record.getMessage() for record in caplog.records].count("backend: cpu") == 1


def test_auto_falls_to_torch_without_a_compiler_with_one_line(without_compiler, caplog):
    assert backend.resolve_backend("auto", "cpu") == backend.resolve_backend("auto", "cpu") == "torch"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "no compiler for the cpu kernels" in record.getMessage()


def test_asked_for_by_name_and_absent_is_an_error_with_the_remedy(without_compiler):
    expected = r"backend 'cpu' cannot be loaded: no compiler .*apt install g\+\+.*--backend torch"
    with pytest.raises(UserError, match=expected):
        backend.resolve_backend("cpu", "cpu")


def test_torch_is_always_there(without_compiler, caplog):
    caplog.set_level(logging.INFO)
    assert backend.resolve_backend("torch", "cpu") == "torch"
    assert "backend: torch (asked for)" in caplog.text


def test_a_device_without_kernels_gets_torch():
    assert backend.resolve_backend("auto", "meta") == "torch"


@pytest.mark.parametrize(("requested", "device"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_backend_of_another_device_is_refused(requested, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=f"use --device {requested} or --backend auto"):
        backend.resolve_backend(requested, device)


def test_an_unknown_backend_is_refused():
    with pytest.raises(UserError, match="expected one of auto, cuda, cpu, torch, nerfacc, tcnn, got 'gpu'"):
        backend.resolve_backend("gpu", "cpu")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_cuda_without_a_gpu_says_so(monkeypatch, device):
    """And sends nobody to a device that is not there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs an NVIDIA GPU, and torch sees none: .* or use --backend auto$"):
        backend.resolve_backend("cuda", device)
    with pytest.raises(UserError, match="torch sees no CUDA GPU"):
        backend.library("cuda")


def test_a_failure_is_kept_for_the_process(tmp_path, monkeypatch):
    calls = []

    def fail(kind: str, target: str) -> Path:
        calls.append(kind)
        raise build.BuildError("boom")

    monkeypatch.setattr(backend, "PREBUILT_DIR", tmp_path)
    monkeypatch.setattr(build, "cached_library", fail)
    for _ in range(3):
        with pytest.raises(UserError, match="boom"):
            backend.library("cpu")
    assert calls == ["cpu"]


def test_a_library_that_does_not_load_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "PREBUILT_DIR", tmp_path / "none")
    broken = tmp_path / "broken.so"
    broken.write_text("not a library")
    monkeypatch.setattr(build, "cached_library", lambda kind, target: broken)
    with pytest.raises(UserError, match=r"broken.so: .*; delete what does not load, or .*; or use --backend torch"):
        backend.library("cpu")


@pytest.mark.compiler
def test_a_current_prebuilt_library_needs_no_compiler(tmp_path, monkeypatch):
    built = build.cached_library("cpu", build.host_target())
    prebuilt = tmp_path / "prebuilt"
    prebuilt.mkdir()
    for suffix in (".so", ".json"):
        shutil.copy(built.with_suffix(suffix), prebuilt)
    monkeypatch.setattr(backend, "PREBUILT_DIR", prebuilt)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert backend.resolve_backend("cpu", "cpu") == "cpu"
    assert backend.library("cpu")._name == str(prebuilt / "libnerf_bridge_cpu.so")


def built_for(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, *targets: str) -> Path:
    """A library of `kind` in the place of those built ahead of time, whose record says that it is for `targets`."""
    library = build.library_path(kind, folder)
    library.write_text("not a real one")
    library.with_suffix(".json").write_text(json.dumps({"sources": build.source_hash(kind), "targets": targets}))
    monkeypatch.setattr(backend, "PREBUILT_DIR", folder)
    return library


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says that there is a GPU of compute capability 7.5."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (7, 5))
    monkeypatch.setattr(backend.ctypes, "CDLL", lambda path: SimpleNamespace(path=path))


def test_a_prebuilt_library_without_code_for_the_gpu_is_named_and_another_is_built(gpu, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    built_for(tmp_path, monkeypatch, "cuda", "sm_80", "compute_80")
    monkeypatch.setattr(build, "cached_library", lambda kind, target: Path(f"cached-{target}"))
    assert backend.library("cuda").path == "cached-sm_75"
    assert caplog.messages == [
        "the cuda kernels built ahead of time are not used: they have code for sm_80, compute_80, none for sm_75; "
        "others are built now, unless the cache has them",
        f"this GPU is sm_75: {build.NO_TENSOR_CORES}",
    ]


def test_without_nvcc_the_error_says_why_the_prebuilt_library_does_not_fit(
    gpu, without_compiler, tmp_path, monkeypatch
):
    monkeypatch.setattr(build, "_nvcc_candidates", lambda: ["nvcc"])
    built_for(tmp_path, monkeypatch, "cuda", "sm_80", "sm_90", "compute_90")
    expected = (
        "the backend 'cuda' cannot be loaded: the cuda kernels built ahead of time are not used: they have code for "
        "sm_80, sm_90, compute_90, none for sm_75, and others cannot be built: no compiler for the cuda kernels .*"
        "install the CUDA toolkit .*; or reinstall with NERF_BRIDGE_BUILD=cuda NERF_BRIDGE_CUDA_ARCHS=75"
    )
    with pytest.raises(UserError, match=expected) as caught:
        backend.library("cuda")
    assert "\n" not in str(caught.value)


def test_ptx_of_an_older_gpu_serves(gpu, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (12, 0))
    prebuilt = built_for(tmp_path, monkeypatch, "cuda", "sm_80", "sm_90", "compute_90")
    assert backend.library("cuda").path == str(prebuilt) and caplog.messages == []


def test_kernels_of_other_sources_are_not_used(without_compiler, tmp_path, monkeypatch):
    library = built_for(tmp_path, monkeypatch, "cpu", build.host_target())
    library.with_suffix(".json").write_text(json.dumps({"sources": "older", "targets": [build.host_target()]}))
    expected = "not used: they were built from other sources, and others cannot be built: no compiler .*BUILD=cpu"
    with pytest.raises(UserError, match=expected):
        backend.library("cpu")


def test_check_tensor_says_what_was_expected_and_what_came():
    tensor = torch.zeros(2, 3)
    backend.check_tensor("x", tensor, (None, 3), like=torch.zeros(1))
    with pytest.raises(ValueError, match=r"x: expected shape \[4, any\], got \[2, 3\]"):
        backend.check_tensor("x", tensor, (4, None))
    with pytest.raises(ValueError, match="x: expected dtype torch.float64, got torch.float32"):
        backend.check_tensor("x", tensor, (2, 3), like=torch.zeros(1, dtype=torch.float64))
    with pytest.raises(ValueError, match="x: expected device meta, got cpu"):
        backend.check_tensor("x", tensor, (2, 3), like=torch.zeros(1, device="meta"))


def test_check_float_knows_what_each_backend_takes():
    backend.check_float("x", torch.zeros(1, dtype=torch.float64), "cpu")
    with pytest.raises(ValueError, match="expects torch.float32 or torch.float64, got torch.float16"):
        backend.check_float("x", torch.zeros(1, dtype=torch.float16), "cpu")


@pytest.mark.compiler
def test_kernels_refuse_tensors_that_they_would_misread():
    with pytest.raises(TypeError, match="march_count: expected contiguous tensors on cpu"):
        backend.run_kernel("cpu", "march_count", torch.zeros(3, 4).T)
    for dtype in (torch.int32, torch.int16, torch.bool):
        with pytest.raises(TypeError, match=f"composite_fwd: the tensors' types do not fit: .*{dtype}"):
            backend.run_kernel("cpu", "composite_fwd", torch.zeros(3), torch.zeros(3, 2, dtype=dtype))
