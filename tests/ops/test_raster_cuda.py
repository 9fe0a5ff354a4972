"""The GPU rasteriser gives what the CPU one gives, to the last bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nerf_bridge.ops.raster import Raster, clip_positions, rasterize, rasterize_uv
from nerf_bridge.scene.cameras import orbit_cameras

pytestmark = [pytest.mark.cuda, pytest.mark.compiler]


def soup(seed: int, n_faces: int, size: float) -> tuple[Tensor, Tensor]:
    """Clip positions [3 n, 4] of loose triangles; every third lies on a coarse lattice, so that they tie."""
    generator = torch.Generator().manual_seed(seed)
    middle = torch.randn(n_faces, 1, 4, generator=generator)
    corners = middle + size * torch.randn(n_faces, 3, 4, generator=generator)
    corners[..., 3] += 1.0  # some are cut by the near plane, some lie behind it
    corners[::3] = (corners[::3] * 8).round() / 8
    corners[::3, :, 2:] = torch.tensor([0.5, 1.0])
    return corners.reshape(-1, 4), torch.arange(3 * n_faces).reshape(-1, 3)


def assert_same(got: Raster, expected: Raster) -> None:
    assert got.face_index.device.type == "cuda"
    assert torch.equal(got.face_index.cpu(), expected.face_index)
    assert torch.equal(got.barycentrics.cpu(), expected.barycentrics)
    assert torch.equal(got.depth.cpu(), expected.depth)


@pytest.mark.parametrize(("n_faces", "size"), [(1, 2.0), (12, 1.0), (500, 0.3), (20000, 0.02), (200_000, 0.005)])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (64, 64), (301, 517)])
def test_triangles_of_every_size(n_faces: int, size: float, height: int, width: int) -> None:
    positions, faces = soup(n_faces, n_faces, size)
    expected = rasterize(positions, faces, height, width, "cpu")
    assert_same(rasterize(positions.cuda(), faces.cuda(), height, width, "cuda"), expected)


def test_a_mesh_seen_by_a_camera() -> None:
    theta, phi = torch.meshgrid(torch.linspace(0, math.pi, 65), torch.linspace(0, 2 * math.pi, 129), indexing="ij")
    vertices = torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], dim=-1).reshape(-1, 3)
    first = (torch.arange(64)[:, None] * 129 + torch.arange(128)).reshape(-1)
    faces = torch.cat(
        [torch.stack([first, first + 129, first + 130], 1), torch.stack([first, first + 130, first + 1], 1)]
    )
    values = (torch.tensor([value]) for value in (0.7, 0.4, 2.5, 0.9))
    positions = clip_positions(vertices, orbit_cameras(*values))[0]
    expected = rasterize(positions, faces, 512, 512, "cpu")
    assert expected.covered.float().mean() > 0.3
    assert_same(rasterize(positions.cuda(), faces, 512, 512, "cuda"), expected)


@pytest.mark.parametrize("size", [8, 37, 1024])
def test_texture_space(size: int) -> None:
    uvs = torch.rand(3000, 2, generator=torch.Generator().manual_seed(0))
    uvs[:600] = (uvs[:600] * 64).round() / 64
    faces = torch.arange(3000).reshape(-1, 3)
    assert_same(rasterize_uv(uvs.cuda(), faces.cuda(), size, "cuda"), rasterize_uv(uvs, faces, size, "cpu"))


def test_nothing_and_broken_faces_cover_nothing() -> None:
    none = rasterize(torch.ones(3, 4, device="cuda"), torch.zeros(0, 3, dtype=torch.int64), 5, 7, "cuda")
    assert not none.covered.any() and bool(none.depth.isinf().all()) and bool((none.barycentrics == 0).all())
    positions = torch.tensor([[0.0, 0, 0, 1], [1, 0, 0, 1], [2, 0, 0, 1], [float("nan"), 0, 0, 1], [0, 1, 0, -1]])
    faces = torch.tensor([[0, 1, 2], [0, 0, 0], [0, 1, 3]])
    assert not rasterize(positions.cuda(), faces, 16, 16, "cuda").covered.any()


def test_it_runs_on_the_current_stream() -> None:
    positions, faces = soup(1, 500, 0.3)
    expected = rasterize(positions, faces, 128, 128, "cpu")
    on_gpu = torch.zeros_like(positions, device="cuda")
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(50):
            on_gpu = on_gpu + 0.0
        on_gpu = on_gpu + positions.cuda()
        got = rasterize(on_gpu, faces.cuda(), 128, 128, "cuda")
    stream.synchronize()
    assert_same(got, expected)
