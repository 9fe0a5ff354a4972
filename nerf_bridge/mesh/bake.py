"""The field's colours and normals in textures, sampled along the surface's normal at each texel."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn.functional import normalize

from nerf_bridge.mesh.data import UnwrappedMesh
from nerf_bridge.mesh.normal_map import tangent_space
from nerf_bridge.mesh.normals import density_normals
from nerf_bridge.mesh.surface import Field, inside_occupied
from nerf_bridge.mesh.texels import covered_texels, onto_field

logger = logging.getLogger(__name__)

OFFSETS = (0.5, 0.0, -0.5, -1.0, -1.5)
"""Where the field's colours are sampled along the outward normal at its surface, in cells, from the outside inward."""
REACH, STEPS = 2.0, 4
"""How far from the mesh the field's own surface is looked for, in cells to either side, and in how many steps."""
NORMAL_STEP = 2.0
"""Radius of the differences that give the field's normals, in cells. With one cell the error on a smooth surface is 0.1
in place of 1.5 degrees, but a trained field's noise covers the object with a grain."""
GREY, STRAIGHT = (128, 128, 128), (128, 128, 255)

NormalAt = Callable[[Tensor, Tensor], Tensor]
"""(points [n, 3], outward [n, 3] unit) -> unit normals [n, 3] of the surface there, on the points' device."""


@dataclass(frozen=True)
class Source:
    """What is baked.

    Attributes:
        field: the field over [-1, 1]^3.
        occupied: [r, r, r] bool, on the field's device, where the baking is done.
        threshold: density of the surface.
        cell: side of the cells that the surface was made of, in units of the box.
    """

    field: Field
    occupied: Tensor
    threshold: float
    cell: float


@torch.no_grad()
def bake(
    mesh: UnwrappedMesh,
    source: Source,
    size: int,
    backend: str,
    normal_at: NormalAt | None,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Textures of the field's surface around a mesh.

    Decimation moves the surface by up to some cells. So at each texel the field's own surface is looked for along the
    normal, and colour and normal are those of the field there. Memory: up to 36 bytes a texel of the texture (about
    half a GiB at 4096), the rest is bounded.

    Args:
        mesh: surface with texture coordinates.
        source: the field.
        size: texels along a side.
        backend: of the rasteriser.
        normal_at: normals for the normal map, for example of `field_normals`; None: no normal map.
        on_progress: called with the fraction done.

    Returns:
        base colour [size, size, 3] uint8, row 0 at v = 1, and the normal map alike (`Material.normal`) or None. Texels
        between the charts are those of the nearest one inside, so that neither filtering nor mip-maps find a border.
    """
    device = source.occupied.device
    color = torch.tensor(GREY, dtype=torch.uint8, device=device).repeat(size * size, 1)
    normal = torch.tensor(STRAIGHT, dtype=torch.uint8, device=device).repeat(size * size if normal_at else 0, 1)
    covered = torch.zeros(size * size, dtype=torch.bool, device=device)
    unknown = torch.zeros((), dtype=torch.int64, device=device)
    for texels in covered_texels(mesh, size, backend, device):
        outward = normalize(texels.normals, dim=-1)
        distance = onto_field(texels, source.field, source.occupied, source.threshold, REACH * source.cell, STEPS)
        points = texels.points + distance[:, None] * outward
        covered[texels.index] = True
        seen, known = seen_colors(source, points, outward)
        color[texels.index] = _bytes(seen)
        unknown += (~known).sum()
        if normal_at is not None:
            local = tangent_space(normal_at(points, outward), texels.normals, texels.tangents)
            normal[texels.index] = _bytes(0.5 + 0.5 * local)
        if on_progress is not None:
            on_progress(texels.done)
    if unknown > 0:
        logger.warning("the field's colour is not a number at %d of %d texels; they are grey", unknown, covered.sum())
    nearest = nearest_covered(covered.reshape(size, size).cpu().numpy())
    textures = [texture.reshape(size, size, 3).cpu().numpy()[nearest] for texture in (color, normal) if len(texture)]
    return textures[0], textures[1] if normal_at is not None else None


def field_normals(source: Source) -> NormalAt:
    """The field's own normals, from the density's gradient."""
    step = NORMAL_STEP * source.cell

    def normal_at(points: Tensor, outward: Tensor) -> Tensor:
        return density_normals(points, outward, source.field, source.occupied, source.threshold, step)

    return normal_at


def seen_colors(source: Source, points: Tensor, normals: Tensor) -> tuple[Tensor, Tensor]:
    """Colours of the field around points of its surface, as an eye just outside would see them; grey where it has none.

    A field has no say in its colours where it is empty, and a little inside they may be others than on its skin. So
    they are weighted like the samples of a ray that comes in from outside: w_i = T_i alpha_i, alpha_i = 1 -
    exp(-sigma_i delta) (Max 1995), over their sum.

    Args:
        source: the field.
        points: [n, 3].
        normals: [n, 3] unit, outward.

    Returns:
        [n, 3] in 0..1. They are the field's albedo: where it was trained under light, the light is not in them.
        [n] bool, where the field has a colour: elsewhere no sample is a number, and the colour is grey.
    """
    offsets = torch.tensor(OFFSETS, device=points.device) * source.cell
    samples = points[:, None, :] + offsets[:, None] * normals[:, None, :]
    flat = samples.reshape(-1, 3).clamp(-1.0, 1.0)
    sigma, albedo = (value.float().reshape(*samples.shape[:2], -1) for value in source.field(flat))
    usable = (torch.isfinite(sigma) & torch.isfinite(albedo)).all(dim=-1)
    in_field = inside_occupied(flat, source.occupied).reshape(usable.shape)
    depth = torch.where(usable & in_field, sigma[..., 0].clamp_min(0.0), 0.0) * (0.5 * source.cell)
    transmittance = torch.exp(depth - depth.cumsum(dim=-1))
    weights = transmittance * -torch.expm1(-depth) + 1e-6 * usable
    total = weights.sum(dim=-1, keepdim=True)
    albedo = torch.where(usable[..., None], albedo, 0.5)
    colors = (weights[..., None] * albedo).sum(dim=-2) / total.clamp_min(1e-12)
    return torch.where(total > 0, colors, 0.5), total[:, 0] > 0


def nearest_covered(covered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column [h, w] each of the nearest texel that is `covered` [h, w], itself where it is."""
    nearest: np.ndarray = np.indices(covered.shape, dtype=np.int32)
    if covered.any():
        distance_transform_edt(~covered, return_distances=False, return_indices=True, indices=nearest)
    return nearest[0], nearest[1]


def _bytes(values: Tensor) -> Tensor:
    return (values * 255.0).round().clamp(0, 255).byte()
