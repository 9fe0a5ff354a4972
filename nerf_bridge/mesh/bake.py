"""The field's colours in the texture."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from nerf_bridge.mesh.data import UnwrappedMesh
from nerf_bridge.mesh.surface import CHUNK, Field, inside_occupied
from nerf_bridge.ops.raster import rasterize_uv

OFFSETS = (0.5, 0.0, -0.5, -1.0, -1.5)
"""Where the field is sampled along the outward normal at a texel, in cells, from the outside inward."""


@torch.no_grad()
def bake(mesh: UnwrappedMesh, field: Field, occupied: Tensor, size: int, cell: float, backend: str) -> np.ndarray:
    """Colour of the field at each texel of the surface, as an eye just outside would see it.

    The surface lies beside the field's by a part of a cell, and a field has no say in its colours where it is empty.
    So the field is sampled along the normal, and its colours c_i are weighted like the samples of a ray that comes in
    from outside: w_i = T_i alpha_i, alpha_i = 1 - exp(-sigma_i delta) (Max 1995), over their sum.

    Args:
        mesh: surface with texture coordinates.
        field: the field over [-1, 1]^3, asked for at most CHUNK points at once.
        occupied: [r, r, r] bool, on the field's device.
        size: texels along a side.
        cell: unit of OFFSETS, in units of the box.
        backend: of the rasteriser.

    Returns:
        [size, size, 3] uint8, row 0 at v = 1. Texels between the charts have the colour of the nearest one inside.
    """
    raster = rasterize_uv(torch.as_tensor(mesh.uv).float(), torch.as_tensor(mesh.faces), size, backend)
    face_index, barycentrics = raster.face_index.flatten(), raster.barycentrics.reshape(-1, 3)
    texture = torch.full((size * size, 3), 128, dtype=torch.uint8)
    for texels in raster.covered.flatten().nonzero().squeeze(-1).split(CHUNK // len(OFFSETS)):
        points, normals = _surface_at(mesh, face_index[texels].numpy(), barycentrics[texels].double().numpy())
        colors = seen_colors(field, occupied, points.to(occupied.device), normals.to(occupied.device), cell)
        texture[texels] = (colors.cpu() * 255.0).round().clamp(0, 255).byte()
    return pad_charts(texture.reshape(size, size, 3).numpy(), raster.covered.numpy())


def _surface_at(mesh: UnwrappedMesh, faces: np.ndarray, barycentrics: np.ndarray) -> tuple[Tensor, Tensor]:
    """Points [n, 3] and unit normals [n, 3] of the surface in the `faces` [n] at `barycentrics` [n, 3]."""
    corners = mesh.faces[faces]
    points = np.einsum("nk,nkd->nd", barycentrics, mesh.vertices[corners])
    normals = np.einsum("nk,nkd->nd", barycentrics, mesh.normals[corners])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return torch.as_tensor(points).float(), torch.as_tensor(normals / np.maximum(lengths, 1e-12)).float()


def seen_colors(field: Field, occupied: Tensor, points: Tensor, normals: Tensor, cell: float) -> Tensor:
    """[n, 3] colours in 0..1 of the field around `points` [n, 3], seen against `normals` [n, 3]; else grey."""
    offsets = torch.tensor(OFFSETS, device=points.device) * cell
    samples = points[:, None, :] + offsets[:, None] * normals[:, None, :]
    flat = samples.reshape(-1, 3).clamp(-1.0, 1.0)
    sigma, albedo = (value.float().reshape(*samples.shape[:2], -1) for value in field(flat))
    usable = (torch.isfinite(sigma) & torch.isfinite(albedo)).all(dim=-1)
    in_field = inside_occupied(flat, occupied).reshape(usable.shape)
    depth = torch.where(usable & in_field, sigma[..., 0].clamp_min(0.0), 0.0) * (0.5 * cell)
    transmittance = torch.exp(depth - depth.cumsum(dim=-1))
    weights = transmittance * -torch.expm1(-depth) + 1e-6 * usable
    total = weights.sum(dim=-1, keepdim=True)
    albedo = torch.where(usable[..., None], albedo, 0.5)
    colors = (weights[..., None] * albedo).sum(dim=-2) / total.clamp_min(1e-12)
    return torch.where(total > 0, colors, 0.5)


def pad_charts(texture: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Give each texel of `texture` [h, w, 3] that is not `covered` [h, w] the colour of the nearest one that is."""
    if not covered.any():
        return texture
    row, column = distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return texture[row, column]
