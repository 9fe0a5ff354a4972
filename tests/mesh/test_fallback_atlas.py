"""The atlas that always works: every face its own place, of a size that suits it, for any mesh."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nerf_bridge.mesh.bake import nearest_covered
from nerf_bridge.mesh.data import Mesh
from nerf_bridge.mesh.fallback_atlas import grid_atlas
from nerf_bridge.mesh.geometry import face_areas
from nerf_bridge.ops.raster import rasterize_uv
from nerf_bridge.ops.texture import look_up


def soup(n_faces: int, seed: int, spread: float) -> Mesh:
    """Loose triangles whose sizes vary by a factor of e^spread to both sides."""
    random = np.random.default_rng(seed)
    scale = np.exp(random.normal(0, spread, (n_faces, 1, 1)))
    return Mesh((random.normal(size=(n_faces, 3, 3)) * scale).reshape(-1, 3), np.arange(3 * n_faces).reshape(-1, 3))


def areas_2d(uv: np.ndarray) -> np.ndarray:
    """[f] signed areas of triangles [f, 3, 2]."""
    (ax, ay), (bx, by) = (uv[:, 1] - uv[:, 0]).T, (uv[:, 2] - uv[:, 0]).T
    return 0.5 * (ax * by - ay * bx)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 300), st.integers(0, 99), st.sampled_from([0.0, 0.5, 2.0, 6.0]), st.sampled_from([64, 256, 1000]))
def test_faces_lie_in_the_texture_apart_and_unmirrored(n_faces: int, seed: int, spread: float, size: int) -> None:
    mesh = soup(n_faces, seed, spread)
    source, faces, uv = grid_atlas(mesh, size)
    assert np.array_equal(source[faces], mesh.faces)
    assert uv.min() >= 0 and uv.max() <= 1
    assert (areas_2d(uv[faces]) > 0).all()
    lowest = rasterize_uv(torch.as_tensor(uv), torch.as_tensor(faces), 128, "torch").face_index
    highest = rasterize_uv(torch.as_tensor(uv), torch.as_tensor(faces).flip(0), 128, "torch").face_index
    assert torch.equal(lowest, torch.where(highest >= 0, n_faces - 1 - highest, -1))  # no two faces claim a texel


def test_degenerate_faces_get_a_place_too() -> None:
    mesh = Mesh(np.zeros((4, 3)), np.array([[0, 1, 2], [1, 2, 3], [0, 0, 0]]))
    source, faces, uv = grid_atlas(mesh, 64)
    assert np.isfinite(uv).all() and np.array_equal(source[faces], mesh.faces) and (areas_2d(uv[faces]) > 0).all()


def test_large_faces_get_more_texels() -> None:
    """Texels for a length vary by less than a factor of 3 over 99 % of the area, while lengths vary by 20."""
    mesh = soup(3000, 0, 0.75)
    _, faces, uv = grid_atlas(mesh, 2048)
    area = face_areas(mesh)
    density = np.sqrt(areas_2d(uv[faces]) / area)
    order = np.argsort(density)
    reached = np.cumsum(area[order]) / area.sum()
    low, high = (density[order][np.searchsorted(reached, share)] for share in (0.005, 0.995))
    assert np.sqrt(np.quantile(area, 0.99) / np.quantile(area, 0.01)) > 20
    assert high / low < 3
    assert areas_2d(uv[faces]).sum() > 0.5


def test_a_large_face_s_widest_corner_is_the_right_angle() -> None:
    mesh = Mesh(np.array([[0.0, 0, 0], [4, 0, 0], [2, 0.5, 0]]), np.array([[0, 1, 2]]))
    _, faces, uv = grid_atlas(mesh, 64)
    a, b, c = uv[faces[0]]
    assert (a - c) @ (b - c) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.compiler
@pytest.mark.parametrize(("n_faces", "size"), [(500, 256), (5000, 1024)])
def test_filtering_sees_no_other_face(n_faces: int, size: int) -> None:
    mesh = soup(n_faces, 1, 0.5)
    _, faces, uv = grid_atlas(mesh, size)
    random = np.random.default_rng(2)
    palette = random.integers(0, 256, (n_faces, 3)) / 255
    face = rasterize_uv(torch.as_tensor(uv), torch.as_tensor(faces), size, "cpu").face_index.numpy()
    texture = np.where((face >= 0)[..., None], palette[face], 0.0)[nearest_covered(face >= 0)]
    weights = random.dirichlet([1, 1, 1], size=(n_faces, 10))
    at = np.einsum("fsk,fkd->fsd", weights, uv[faces]).reshape(-1, 2)
    seen = look_up(torch.as_tensor(texture), torch.as_tensor(at)).numpy().reshape(n_faces, 10, 3)
    shown = np.isin(np.arange(n_faces), face)  # a face that holds no texel's centre cannot be told
    assert shown.mean() > 0.99
    error = np.abs(seen - palette[:, None]).max(axis=2)[shown]
    assert (error > 0.1).mean() < 0.005 and (error > 0.5).mean() < 0.001
