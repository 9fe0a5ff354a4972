"""Group norm with SiLU: the twin against autograd in float64, the kernels against the twin."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from nerf_bridge.prior.models import group_norm
from nerf_bridge.prior.models.group_norm import backward, moments, normalise, without_kernels
from nerf_bridge.prior.models.norm import Norm

TESTS = Path(__file__).resolve().parents[2]
GPU_SHAPES = [
    *((1, 128, 100, 60), (2, 256, 33, 17), (1, 512, 16, 16), (3, 16, 5, 7)),
    (1, 128, 256, 256),  # several rounds of a joining program
    (1, 1024, 24, 24),  # groups of more channels than it has lanes
]


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("with_skip", [True, False])
def test_the_twin_is_torchs_group_norm_and_its_gradient(silu, with_skip):
    torch.manual_seed(0)
    x, skip, grad = (torch.randn(2, 12, 5, 3, dtype=torch.float64).to(memory_format=torch.channels_last) for _ in "abc")
    bias, gain, offset = (torch.randn(12, dtype=torch.float64) for _ in range(3))
    norm, more = Norm(gain, offset, 4, 1e-3, 0.25), skip if with_skip else None
    total, stats = moments(x, bias, 4, more)
    leaf = x.clone().requires_grad_()
    whole = leaf + bias[:, None, None] + (skip if with_skip else 0)
    expected = functional.group_norm(whole, 4, gain, offset, 1e-3)
    expected = 0.25 * (functional.silu(expected) if silu else expected)
    pending = torch.zeros_like(bias) if with_skip else bias  # where a sum is stored, the bias is in it
    assert torch.allclose(normalise(total, pending, stats, norm, silu), expected.detach())
    (expected_grad,) = torch.autograd.grad(expected, leaf, grad)
    got = backward(grad, total, pending, stats, norm, silu, more)
    assert torch.allclose(got, expected_grad + (skip if with_skip else 0))
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_the_kernels_are_left_out_where_they_are_not_wanted_and_only_there(monkeypatch):
    monkeypatch.setattr(group_norm, "_triton_works", lambda: True)
    on_gpu = SimpleNamespace(
        is_cuda=True, shape=(1, 8, 2, 2), dtype=torch.float32, is_contiguous=lambda memory_format: True
    )

    def fit():
        return group_norm._kernels_fit(on_gpu, 4)

    assert fit()
    with without_kernels():
        assert not fit()
        with without_kernels():
            assert not fit()
        assert not fit()
    assert fit()
    with pytest.raises(OSError, match="on the way"), without_kernels():
        assert not fit()
        raise OSError("on the way")
    assert fit()


@pytest.mark.parametrize(("shape", "fits"), [((1, 128, 4096, 4095), True), ((9, 128, 4096, 4096), False)])
def test_the_kernels_are_left_out_where_their_offsets_would_not_hold_the_image(monkeypatch, shape, fits):
    monkeypatch.setattr(group_norm, "_triton_works", lambda: True)
    on_gpu = SimpleNamespace(is_cuda=True, shape=shape, dtype=torch.float16, is_contiguous=lambda memory_format: True)
    assert group_norm._kernels_fit(on_gpu, 32) == fits


@pytest.mark.parametrize("names", [(), ("gcc",), ("clang",)])
def test_triton_is_left_alone_where_it_finds_no_compiler(monkeypatch, names):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(group_norm.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(group_norm.shutil, "which", lambda name: name if name in names else None)
    assert group_norm._triton_works.__wrapped__() == bool(names)


@pytest.mark.triton
@pytest.mark.slow
def test_the_kernels_are_the_twin_in_the_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    command = [sys.executable, "-m", "prior.models.group_norm_cases"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, cwd=TESTS.parent)
    assert done.returncode == 0, done.stderr
    exact, exact_too, half, half_too, variance = json.loads(done.stdout)
    assert variance["apart"] < 5e-6 and variance["far"] < 3e-4  # the means of runs are rounded at 1000
    for found in (exact, exact_too):
        assert set(found) == {"sum", "stats", "y", "grad"} and max(found.values()) < 2e-5
    for found in (half, half_too):
        assert found["stats"] < 1e-3 and max(found.values()) < 5e-3


@pytest.mark.triton
@pytest.mark.slow
def test_the_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    paths = os.pathsep.join([str(TESTS), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths, "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "prior.models.group_norm_cases", "80", "90"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, cwd=TESTS.parent)
    assert done.returncode == 0, done.stderr
    sizes = json.loads(done.stdout)
    assert len(sizes) == 7 * 2 * 2 and min(sizes.values()) > 1000, sizes


@pytest.mark.cuda
@pytest.mark.triton
@pytest.mark.parametrize("shape", GPU_SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_the_kernels_are_the_twin_on_the_gpu(shape, dtype, tolerance):
    from prior.models.group_norm_cases import errors, variance_errors

    found = errors("cuda", dtype, shape, groups=min(32, shape[1] // 4))
    assert max(found.values()) < tolerance, found
    assert max(variance_errors("cuda").values()) < 3e-4
