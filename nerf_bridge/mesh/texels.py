"""The texels of a texture and the places of the surface that they show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nerf_bridge.mesh.data import UnwrappedMesh
from nerf_bridge.mesh.normal_map import vertex_tangents
from nerf_bridge.mesh.surface import Field, density_at
from nerf_bridge.ops.raster import interpolate_at, rasterize_uv

STRIP = 2**22
"""Texels that are rasterised at once: what bounds the memory of large textures."""
CHUNK = 2**16
"""Texels that are looked at together; the field is asked for some points around each."""

BISECTIONS = 4
"""Of the step in which the field's surface was found, or of two: to a sixteenth of a cell and better."""


@dataclass(frozen=True)
class Texels:
    """Covered texels, and the surface there by the mesh's own barycentrics.

    Attributes:
        index: [n] int64, row * size + column.
        points: [n, 3].
        normals: [n, 3] of the vertices, interpolated and not normalised.
        tangents: [n, 4] of the vertices, interpolated and not normalised, with the bitangent's sign.
        done: fraction of the texture that is behind when these are dealt with.
    """

    index: Tensor
    points: Tensor
    normals: Tensor
    tangents: Tensor
    done: float


def covered_texels(mesh: UnwrappedMesh, size: int, backend: str, device: torch.device | str) -> Iterator[Texels]:
    """All texels that `rasterize_uv` finds, at most CHUNK at once, strip after strip."""
    uv, faces = torch.as_tensor(mesh.uv, device=device).float(), torch.as_tensor(mesh.faces, device=device)
    frames = np.concatenate([mesh.vertices, mesh.normals, vertex_tangents(mesh)], axis=1)
    values = torch.as_tensor(frames, device=device).float()
    n_rows = max(1, STRIP // size)
    for first in range(0, size, n_rows):
        rows = range(first, min(first + n_rows, size))
        raster = rasterize_uv(uv, faces, size, backend, rows)
        face_index, barycentrics = raster.face_index.flatten(), raster.barycentrics.reshape(-1, 3)
        for part in (face_index >= 0).nonzero().squeeze(-1).split(CHUNK):
            at = interpolate_at(face_index[part], barycentrics[part], faces, values)
            done = (rows[-1] + 1) / size
            yield Texels(part + first * size, at[:, :3], at[:, 3:6], at[:, 6:], done)


def onto_field(texels: Texels, field: Field, occupied: Tensor, threshold: float, reach: float, n: int) -> Tensor:
    """How far along the unit normal the field's own surface lies from each texel's point.

    Args:
        texels: of a mesh near the field's surface.
        field: the field.
        occupied: [r, r, r] bool, on the field's device.
        threshold: density of the surface.
        reach: how far to look to either side, in units of the box.
        n: steps to either side.

    Returns:
        [n] the nearest crossing from empty to dense, coming from outside; 0 where there is none within reach.
    """
    normals = torch.nn.functional.normalize(texels.normals, dim=-1)

    def dense_at(rows: Tensor, distance: Tensor) -> Tensor:
        """[m, k] whether the field is dense at `distance` [m, k] from the points of the texels `rows` [m]."""
        points = texels.points[rows, None] + distance[..., None] * normals[rows, None]
        return (density_at(field, occupied, points.reshape(-1, 3)) > threshold).reshape(distance.shape)

    step, everyone = reach / n, torch.arange(len(normals), device=normals.device)
    ends = torch.tensor([[step, -step]], device=normals.device).repeat(len(normals), 1)
    beside = dense_at(everyone, ends)
    found = ~beside[:, 0] & beside[:, 1]
    away = (~found).nonzero()[:, 0]  # few: the mesh lies near the surface almost everywhere
    offsets = torch.linspace(reach, -reach, 2 * n + 1, device=normals.device)
    dense = dense_at(away, offsets.expand(len(away), -1))
    enters = ~dense[:, :-1] & dense[:, 1:]
    nearest = torch.where(enters, (offsets[:-1] + offsets[1:]).abs(), torch.inf).argmin(dim=1)
    ends[away] = torch.stack([offsets[nearest], offsets[nearest + 1]], dim=1)
    found[away] = enters.any(dim=1)
    for _ in range(BISECTIONS):
        middle = ends.mean(dim=1, keepdim=True)
        hit = dense_at(everyone, middle)
        ends = torch.where(torch.cat([~hit, hit], dim=1), middle, ends)
    return torch.where(found, ends.mean(dim=1), 0.0)
