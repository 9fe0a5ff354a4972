"""Baking, rendering and refining on the GPU give what they give on the CPU."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nerf_bridge.config import FieldConfig
from nerf_bridge.mesh.bake import Source, bake, field_normals
from nerf_bridge.mesh.data import Mesh, UnwrappedMesh
from nerf_bridge.mesh.fallback_atlas import grid_atlas
from nerf_bridge.mesh.geometry import vertex_normals
from nerf_bridge.scene.cameras import turntable_cameras
from nerf_bridge.scene.field import HashGridField
from nerf_bridge.scene.mesh_render import ColoredMesh, Texture, shade_mesh

pytestmark = [pytest.mark.cuda, pytest.mark.compiler]
SIZE = 256


def ball() -> UnwrappedMesh:
    theta, phi = np.meshgrid(np.linspace(0, np.pi, 25), np.linspace(0, 2 * np.pi, 49), indexing="ij")
    points = 0.4 * np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1)
    first = (np.arange(24)[:, None] * 49 + np.arange(48)).reshape(-1)
    corners = [[first, first + 49, first + 50], [first, first + 50, first + 1]]
    mesh = Mesh(points.reshape(-1, 3), np.concatenate([np.stack(corner, axis=1) for corner in corners]))
    source, faces, uv = grid_atlas(mesh, SIZE)
    return UnwrappedMesh(mesh.vertices[source], vertex_normals(mesh)[source], uv, faces, "grid")


def textures(device: str) -> tuple[np.ndarray, np.ndarray | None]:
    field = HashGridField(FieldConfig(), 0, device)
    with torch.no_grad():
        field.table *= 2e4  # colours and bumps
    occupied = torch.ones((16, 16, 16), dtype=torch.bool, device=device)
    source = Source(field.to(device), occupied, 1.0, 2 / 64)
    return bake(ball(), source, SIZE, device, field_normals(source))


def test_baking_on_the_gpu() -> None:
    for got, expected in zip(textures("cuda"), textures("cpu"), strict=True):
        assert got is not None and expected is not None and len(np.unique(expected)) > 50
        assert (np.abs(got.astype(int) - expected) > 2).mean() < 0.01


def rendered(device: str) -> tuple[Tensor, Tensor]:
    """A picture, and the gradient in the texture of a loss on it."""
    mesh = ball()
    texture = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    look = Texture(torch.as_tensor(mesh.uv, device=device).float(), texture)
    vertices, faces = torch.as_tensor(mesh.vertices, device=device).float(), torch.as_tensor(mesh.faces, device=device)
    cameras = turntable_cameras(2, 0.3, 3.0, math.radians(40))
    light = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]], device=device)
    images, _ = shade_mesh(ColoredMesh(vertices, faces, look), cameras, 64, device, light_dir=light)
    images.sin().sum().backward()
    assert texture.grad is not None
    return images.detach().cpu(), texture.grad.cpu()


def test_rendering_a_textured_mesh_on_the_gpu_forward_and_backward() -> None:
    (image, grad), (expected_image, expected_grad) = rendered("cuda"), rendered("cpu")
    assert ((image - expected_image).abs().amax(dim=-1) > 1e-4).float().mean() < 1e-3  # a sample on an edge
    assert (grad - expected_grad).abs().sum() < 1e-3 * expected_grad.abs().sum()
