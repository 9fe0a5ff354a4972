"""Rays of pixels: the kernels against plain torch."""

from __future__ import annotations

import math

import pytest
import torch

from nerf_bridge.ops.rays import pixel_rays, pixel_rays_torch
from nerf_bridge.scene.cameras import Cameras, orbit_cameras

KERNELS = [pytest.param("cpu", marks=pytest.mark.compiler), pytest.param("cuda", marks=pytest.mark.cuda)]


def cameras(n: int) -> Cameras:
    drawn = torch.rand(4, n, generator=torch.Generator().manual_seed(0))
    return orbit_cameras(drawn[0] * 2 * math.pi, drawn[1] * 2 - 1, 1.5 + drawn[2], 0.3 + drawn[3])


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(("n", "height", "width"), [(1, 1, 1), (3, 5, 7), (2, 64, 33), (0, 4, 4), (2, 0, 4)])
def test_kernels_give_the_rays_of_torch(backend, n, height, width):
    of = cameras(n).to(backend)
    for got, expected in zip(
        pixel_rays(of.c2w, of.fovy_rad, height, width, backend),
        pixel_rays_torch(of.c2w, of.fovy_rad, height, width),
        strict=True,
    ):
        assert got.shape == expected.shape == (n * height * width, 3) and got.is_contiguous()
        torch.testing.assert_close(got, expected, atol=3e-7, rtol=0)


@pytest.mark.parametrize("backend", ["torch", *KERNELS])
def test_cameras_may_have_gradients_on_every_backend(backend):
    of = cameras(2).to(backend if backend == "cuda" else "cpu")
    c2w = of.c2w.detach().requires_grad_()
    _, directions = pixel_rays(c2w, of.fovy_rad, 3, 4, backend)
    (gradient,) = torch.autograd.grad(directions[:, 2].sum(), c2w)
    assert float(gradient.abs().max()) > 0


def test_wrong_arguments_are_named():
    of = cameras(2)
    with pytest.raises(ValueError, match="c2w: expected shape"):
        pixel_rays(of.c2w[:, :3], of.fovy_rad, 3, 4, "torch")
    with pytest.raises(ValueError, match=r"fovy_rad: expected shape \[2\]"):
        pixel_rays(of.c2w, of.fovy_rad[:1], 3, 4, "torch")
