"""Normal maps in the tangent space of MikkTSpace, which glTF 2.0 (section 3.9.3) and Blender expect.

At a vertex: tangent = direction in which u grows on the faces around it, made perpendicular to the vertex normal and
weighted by angle (Mikkelsen 2008, "Simulation of Wrinkled Surfaces Revisited"). At a texel: normal N and tangent T are
interpolated and not normalised, B = sign N x T, and the shader's normal is x T + y B + z N. Here x, y, z are sought.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nerf_bridge.mesh.data import Mesh, UnwrappedMesh
from nerf_bridge.mesh.geometry import vertex_normals


def vertex_tangents(mesh: UnwrappedMesh) -> np.ndarray:
    """[v, 4] float64: unit tangents, and the sign w of the bitangent w N x T, 1 where u, v and N are right-handed."""
    corners, uv = mesh.vertices[mesh.faces], mesh.uv[mesh.faces]
    side, other = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    (du, dv), (du_other, dv_other) = (uv[:, 1] - uv[:, 0]).T, (uv[:, 2] - uv[:, 0]).T
    sign = np.where(du * dv_other - dv * du_other < 0.0, -1.0, 1.0)
    along_u = _unit(sign[:, None] * (dv_other[:, None] * side - dv[:, None] * other))
    tangents, votes = np.zeros_like(mesh.vertices), np.zeros(len(mesh.vertices))
    for corner in range(3):
        vertex = mesh.faces[:, corner]
        normal = mesh.normals[vertex]
        to_next, to_last = (corners[:, (corner + step) % 3] - corners[:, corner] for step in (1, 2))
        cosine = (_unit(_across(to_next, normal)) * _unit(_across(to_last, normal))).sum(axis=1)
        share = np.arccos(np.clip(cosine, -1.0, 1.0))[:, None] * _unit(_across(along_u, normal))
        for axis in range(3):
            tangents[:, axis] += np.bincount(vertex, share[:, axis], len(tangents))
        votes += np.bincount(vertex, sign, len(votes))
    tangents = _unit(tangents)
    found = (tangents**2).sum(axis=1, keepdims=True) > 0.5
    handed = np.where(votes < 0.0, -1.0, 1.0)[:, None]
    return np.concatenate([np.where(found, tangents, _any_across(mesh.normals)), handed], axis=1)


def tangent_space(detail: Tensor, normals: Tensor, tangents: Tensor) -> Tensor:
    """The normals that a shader must read from the map to get `detail`.

    Args:
        detail: [n, 3] unit normals in the world.
        normals: [n, 3] interpolated vertex normals, not normalised.
        tangents: [n, 4] interpolated vertex tangents, not normalised, with the sign of the bitangent.

    Returns:
        [n, 3] unit, z >= 0; (0, 0, 1) where the frame is degenerate.
    """
    tangent = tangents[:, :3]
    bitangent = torch.linalg.cross(normals, tangent) * tangents[:, 3:].sign()
    volume = (tangent * torch.linalg.cross(bitangent, normals)).sum(dim=-1)
    axes = [
        torch.linalg.cross(a, b) for a, b in ((bitangent, normals), (normals, tangent), (tangent, bitangent))
    ]  # rows of the inverse of [T B N], times its determinant
    local = torch.stack([(detail * axis).sum(dim=-1) for axis in axes], dim=-1) * volume.sign()[:, None]
    local = torch.cat([local[:, :2], local[:, 2:].clamp_min(0.0)], dim=-1)
    length = local.norm(dim=-1, keepdim=True)
    straight = torch.tensor([0.0, 0.0, 1.0], device=detail.device)
    return torch.where((length > 1e-9) & (volume.abs() > 1e-9)[:, None], local / length.clamp_min(1e-9), straight)


class SurfaceNormals:
    """Normals of a fine mesh at places near it: of the four nearest vertices, weighted by 1 / distance^2.

    For surfaces that are no field's any more. Of a marching cubes surface they are off by some 3 degrees; of a field,
    `density_normals` tells better (0.8 degrees).
    """

    def __init__(self, mesh: Mesh) -> None:
        from scipy.spatial import cKDTree  # only smoothed meshes need it

        self._tree = cKDTree(mesh.vertices)
        self._normals = vertex_normals(mesh)

    def __call__(self, points: Tensor, outward: Tensor) -> Tensor:
        """[n, 3] unit normals near `points` [n, 3]; vertices that face away from `outward` [n, 3] do not count."""
        distance, vertex = self._tree.query(points.cpu().numpy(), k=min(4, len(self._normals)))
        vertex, distance = vertex.reshape(len(points), -1), distance.reshape(len(points), -1)
        normals = torch.as_tensor(self._normals[vertex], device=points.device).float()
        weights = 1.0 / torch.as_tensor(distance**2 + 1e-12, device=points.device).float()
        weights = weights * ((normals * outward[:, None]).sum(dim=-1) > 0.0)
        summed = (weights[..., None] * normals).sum(dim=1)
        length = summed.norm(dim=-1, keepdim=True)
        return torch.where(length > 0.0, summed / length.clamp_min(1e-12), outward)


def _across(vectors: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """What is left of `vectors` [n, 3] perpendicular to unit `normals` [n, 3]."""
    return vectors - (vectors * normals).sum(axis=1, keepdims=True) * normals


def _unit(vectors: np.ndarray) -> np.ndarray:
    """[n, 3] of length 1, or 0 where they have none."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(length > 1e-30, vectors / np.maximum(length, 1e-30), 0.0)


def _any_across(normals: np.ndarray) -> np.ndarray:
    """[n, 3] some unit vector perpendicular to each of the unit `normals` [n, 3]."""
    least = np.eye(3)[np.abs(normals).argmin(axis=1)]
    return _unit(_across(least, normals))
