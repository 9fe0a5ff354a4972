"""Normal maps: the tangents of MikkTSpace, the way there and back, and less error than without a map."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic_fields import RED, AnalyticField, all_occupied
from torch import Tensor
from torch.nn.functional import normalize

from nerf_bridge.mesh.bake import Source, bake, field_normals
from nerf_bridge.mesh.clean import clean
from nerf_bridge.mesh.data import Mesh, UnwrappedMesh
from nerf_bridge.mesh.normal_map import SurfaceNormals, tangent_space, vertex_tangents
from nerf_bridge.mesh.simplify import to_face_count
from nerf_bridge.mesh.surface import marching_cubes, refine_on_edges, sample_density
from nerf_bridge.mesh.texels import covered_texels
from nerf_bridge.mesh.unwrap import unwrap

SIZE, RESOLUTION = 256, 96
NO_XATLAS = ("/nowhere",)


def bumps(points: Tensor) -> Tensor:
    """Signed distance, nearly, of a ball with bumps."""
    radius = points.norm(dim=-1)
    x, y, z = (8.0 * points / radius.clamp_min(1e-9)[:, None]).unbind(dim=-1)
    return radius - 0.6 - 0.03 * x.sin() * y.sin() * z.sin()


def true_normals(points: Tensor) -> Tensor:
    place = points.double().requires_grad_()
    (gradient,) = torch.autograd.grad(bumps(place).sum(), place)
    return normalize(gradient, dim=-1).float()


@pytest.fixture(scope="module")
def source() -> Source:
    return Source(AnalyticField([(bumps, RED)]), all_occupied(), 40.0, 2 / RESOLUTION)


@pytest.fixture(scope="module")
def fine(source: Source) -> Mesh:
    grid = sample_density(source.field, source.occupied, RESOLUTION)
    surface = refine_on_edges(marching_cubes(grid, 40.0), grid, source.field, source.occupied, 40.0)
    return clean(surface, 1e-4, 0.1)


@pytest.fixture(scope="module", params=["xatlas", "grid"])
def coarse(request: pytest.FixtureRequest, fine: Mesh) -> UnwrappedMesh:
    worker = () if request.param == "xatlas" else (NO_XATLAS,)
    return unwrap(to_face_count(fine, 600, 0.1), SIZE, 60.0, 4.0, *worker)


def read_by_a_shader(mesh: UnwrappedMesh, texture: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """What a shader makes of the map at the texels: points [n, 3], unit normals [n, 3], and those without the map."""
    parts = list(covered_texels(mesh, len(texture), "torch", "cpu"))
    points, normals, tangents = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("points", "normals", "tangents")
    )
    index = torch.cat([part.index for part in parts])
    local = torch.as_tensor(texture.reshape(-1, 3))[index].float() / 255 * 2 - 1
    bitangent = torch.linalg.cross(normals, tangents[:, :3]) * tangents[:, 3:].sign()
    seen = local[:, :1] * tangents[:, :3] + local[:, 1:2] * bitangent + local[:, 2:] * normals
    return points, normalize(seen, dim=-1), normalize(normals, dim=-1)


def error_deg(normals: Tensor, points: Tensor) -> float:
    """Root mean square angle to the truth."""
    cosine = (normals * true_normals(points)).sum(dim=-1).clamp(-1, 1)
    return float(torch.rad2deg(cosine.acos()).square().mean().sqrt())


def test_the_map_brings_back_what_decimation_took(coarse: UnwrappedMesh, source: Source) -> None:
    _, normal = bake(coarse, source, SIZE, "torch", field_normals(source))
    assert normal is not None and normal.shape == (SIZE, SIZE, 3) and normal.dtype == np.uint8
    points, seen, without = read_by_a_shader(coarse, normal)
    assert error_deg(without, points) > 8.0
    assert error_deg(seen, points) < 0.35 * error_deg(without, points)
    assert (normal[..., 2] >= 127).all()


def test_a_smoothed_surface_gives_its_own_normals(coarse: UnwrappedMesh, source: Source, fine: Mesh) -> None:
    _, normal = bake(coarse, source, SIZE, "torch", SurfaceNormals(fine))
    assert normal is not None
    points, seen, without = read_by_a_shader(coarse, normal)
    assert error_deg(seen, points) < 0.5 * error_deg(without, points)


def test_where_field_and_mesh_agree_the_map_is_blue() -> None:
    flat = UnwrappedMesh(
        np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]]),
        np.tile([0.0, 0.0, 1.0], (4, 1)),
        np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]),
        np.array([[0, 1, 2], [0, 2, 3]]),
        "grid",
    )
    source = Source(AnalyticField([(lambda points: points[:, 2], RED)]), all_occupied(), 40.0, 0.02)
    _, normal = bake(flat, source, 64, "torch", field_normals(source))
    assert normal is not None and (np.abs(normal.astype(int) - (128, 128, 255)) <= 1).all()


def test_red_leans_to_u_and_green_to_v() -> None:
    normals, tangents = torch.tensor([[0.0, 0, 1]]).repeat(2, 1), torch.tensor([[1.0, 0, 0, 1]]).repeat(2, 1)
    leaning = normalize(torch.tensor([[0.3, 0.0, 1.0], [0.0, 0.3, 1.0]]), dim=-1)  # u along x, v along y
    x, y, _ = tangent_space(leaning, normals, tangents).unbind(dim=1)
    assert x[0] > 0.2 and y[0] == 0 and y[1] > 0.2 and x[1] == 0
    mirrored = torch.tensor([[1.0, 0, 0, -1]])
    assert tangent_space(leaning[1:], normals[1:], mirrored)[0, 1] < -0.2


def test_there_and_back_again_for_any_frame() -> None:
    generator = torch.Generator().manual_seed(0)
    normals, tangents = torch.randn(500, 3, generator=generator), torch.randn(500, 4, generator=generator)
    local = normalize(torch.randn(500, 3, generator=generator).abs(), dim=-1)
    bitangent = torch.linalg.cross(normals, tangents[:, :3]) * tangents[:, 3:].sign()
    detail = local[:, :1] * tangents[:, :3] + local[:, 1:2] * bitangent + local[:, 2:] * normals
    assert torch.allclose(tangent_space(normalize(detail, dim=-1), normals, tangents), local, atol=1e-3)
    broken = tangent_space(local, torch.zeros(500, 3), tangents)
    assert torch.equal(broken, torch.tensor([[0.0, 0, 1]]).expand(500, 3))


def test_tangents_are_unit_and_perpendicular(coarse: UnwrappedMesh) -> None:
    tangents = vertex_tangents(coarse)
    assert np.allclose(np.linalg.norm(tangents[:, :3], axis=1), 1)
    assert np.abs((tangents[:, :3] * coarse.normals).sum(axis=1)).max() < 1e-6
    assert set(np.unique(tangents[:, 3])) <= {-1.0, 1.0}
    degenerate = UnwrappedMesh(coarse.vertices, coarse.normals, np.zeros_like(coarse.uv), coarse.faces, "grid")
    assert np.allclose(np.linalg.norm(vertex_tangents(degenerate)[:, :3], axis=1), 1)


BLENDER = """
import sys, bpy, numpy as np
given = np.load(sys.argv[1])
mesh = bpy.data.meshes.new("mesh")
mesh.from_pydata(given["vertices"].tolist(), [], given["faces"].tolist())
mesh.uv_layers.new().uv.foreach_set("vector", given["uv"][given["faces"]].astype(np.float32).ravel())
mesh.shade_smooth()
mesh.calc_tangents()
normals = np.empty(3 * len(mesh.vertices), dtype=np.float32)
mesh.vertex_normals.foreach_get("vector", normals)
tangents = np.empty(3 * len(mesh.loops), dtype=np.float32)
mesh.loops.foreach_get("tangent", tangents)
signs = np.empty(len(mesh.loops), dtype=np.float32)
mesh.loops.foreach_get("bitangent_sign", signs)
np.savez(sys.argv[2], tangents=tangents.reshape(-1, 3), signs=signs, normals=normals.reshape(-1, 3))
"""


@pytest.mark.blender
@pytest.mark.slow
def test_the_tangents_are_those_of_blender(coarse: UnwrappedMesh, tmp_path: Path) -> None:
    """For the normals that Blender makes: given ones it stores so coarsely that it takes one vertex for several."""
    given, made = tmp_path / "mesh.npz", tmp_path / "tangents.npz"
    np.savez(given, vertices=coarse.vertices, faces=coarse.faces, uv=coarse.uv)
    subprocess.run([sys.executable, "-c", BLENDER, str(given), str(made)], check=True, capture_output=True)
    theirs = np.load(made)
    ours = vertex_tangents(replace(coarse, normals=theirs["normals"].astype(np.float64)))[coarse.faces.reshape(-1)]
    assert (ours[:, :3] * theirs["tangents"]).sum(axis=1).min() > 0.9999
    assert np.array_equal(ours[:, 3], theirs["signs"])
