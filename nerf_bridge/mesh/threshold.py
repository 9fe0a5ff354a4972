"""The density of the surface: the one whose mesh throws the same silhouettes as the field."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nerf_bridge.errors import RunError
from nerf_bridge.mesh.data import DensityGrid, Silhouettes, ThresholdChoice
from nerf_bridge.mesh.silhouettes import mean_iou, opaque_masks
from nerf_bridge.ops.march import march_rays
from nerf_bridge.scene.rays import camera_rays

LOWEST_DENSITY = 0.5
"""Least candidate: light crosses the box's whole side in such a medium, so that nothing below can be a surface."""
COARSE, FINE = 48, 16
"""Candidates over the whole range, then between the neighbours of the best of them."""
MARCH_RESOLUTION = 64
"""Cells along a side of the box of the grid that tells the rays where to look for density."""
FOG_IOU = 0.25
"""Agreement below which no threshold makes the field's silhouettes: it is fog."""
ADVICE = "optimise for longer (--steps), raise guidance.scale, lower optim.weight_opacity, or try another --seed"
THIN_ADVICE = f"{ADVICE}; for parts thinner than a sample, a higher --mesh.resolution"


def choose_threshold(grid: DensityGrid, silhouettes: Silhouettes, backend: str) -> ThresholdChoice:
    """Try densities on a logarithmic scale, then finer ones around the best, and keep the one of the best mean IoU.

    The surface at a density hides a pixel when, and only when, the density is higher somewhere along the pixel's ray.
    So one pass over the rays, at the grid's full resolution, gives the silhouettes of all candidates.

    Args:
        grid: density samples.
        silhouettes: what the field looks like; opacity above OPAQUE counts.
        backend: of the marcher.

    Returns:
        The choice and its curve.

    Raises:
        RunError: the field is empty or fog; says what to do.
    """
    masks = opaque_masks(silhouettes)
    check_not_empty(grid, masks)
    highest = highest_along_rays(grid, silhouettes, backend)
    coarse = np.geomspace(LOWEST_DENSITY, 0.95 * grid.highest, COARSE).tolist()
    curve = {t: mean_iou(highest > t, masks) for t in coarse}
    best = coarse.index(max(curve, key=lambda t: curve[t]))
    around = np.geomspace(coarse[max(best - 1, 0)], coarse[min(best + 1, COARSE - 1)], FINE + 2)[1:-1].tolist()
    curve |= {t: mean_iou(highest > t, masks) for t in around}
    threshold = max(curve, key=lambda t: curve[t])
    if curve[threshold] < FOG_IOU:
        raise RunError(
            f"the field is fog without a surface: its best mesh shares only {100 * curve[threshold]:.0f} % of the "
            f"silhouettes; {ADVICE}"
        )
    return ThresholdChoice(threshold, curve[threshold], tuple(sorted(curve.items())))


def check_not_empty(grid: DensityGrid, masks: Tensor) -> None:
    """Raise RunError with advice when the field holds nothing that could have a surface."""
    if grid.highest <= LOWEST_DENSITY:
        bad = " (and it is not finite in places)" if grid.non_finite else ""
        raise RunError(
            f"the scene is empty: the field's highest density is {grid.highest:.3g}{bad}, which is no surface; "
            f"{THIN_ADVICE}"
        )
    if not masks.any():
        raise RunError(
            f"the field is fog: it is not opaque in any view, though its density reaches {grid.highest:.3g}; {ADVICE}"
        )


@torch.no_grad()
def highest_along_rays(grid: DensityGrid, silhouettes: Silhouettes, backend: str) -> Tensor:
    """[b, h, w] the highest density of the grid along the ray of each pixel, samples one cell apart."""
    views, height, width = silhouettes.opacity.shape
    occupied = _where_dense(grid)
    highest = torch.zeros(views, height * width, device=occupied.device)
    cameras = silhouettes.cameras.to(occupied.device)
    for view in range(views):
        rays = camera_rays(cameras[[view]], height, width)
        samples = march_rays(rays.origins, rays.directions, occupied, grid.cell, None, backend)
        highest[view].scatter_reduce_(0, samples.ray_indices, sigma_at(grid, samples.points), "amax")
    return highest.reshape(views, height, width)


def _where_dense(grid: DensityGrid) -> Tensor:
    """[r, r, r] bool over the box: cells with a candidate's density, or beside one: there the surfaces are."""
    r = min(MARCH_RESOLUTION, grid.resolution)
    dense = torch.zeros(1, 1, r, r, r, device=grid.sigma.device)
    for start in range(0, len(grid.sigma), 16):
        index = (grid.sigma[start : start + 16] > LOWEST_DENSITY).nonzero()
        index += torch.tensor([start + grid.low[0], *grid.low[1:]], device=index.device)
        cell = index * r // grid.resolution
        dense[0, 0, cell[:, 0], cell[:, 1], cell[:, 2]] = 1.0
    return torch.nn.functional.max_pool3d(dense, 3, stride=1, padding=1)[0, 0] > 0


def sigma_at(grid: DensityGrid, points: Tensor) -> Tensor:
    """[n] float32 density at `points` [n, 3], blended linearly between the samples; beyond the outer cells 0."""
    last = torch.tensor(grid.sigma.shape, device=points.device) - 1
    at = (points + 1.0) * (1.0 / grid.cell) - (torch.tensor(grid.low, device=points.device) + 0.5)
    inside = ((at >= -0.5) & (at <= last + 0.5)).all(dim=1)
    at = at.clamp_min(0.0).minimum(last.to(at.dtype))
    base = at.long()
    x, y, z = (at - base).unbind(dim=1)
    strides = torch.tensor(grid.sigma.stride(), device=points.device)
    first, flat = (base * strides).sum(dim=1), grid.sigma.view(-1)
    right, back, above = ((base < last) * strides).unbind(dim=1)

    def along_z(index: Tensor) -> Tensor:
        return torch.lerp(flat[index].float(), flat[index + above].float(), z)

    def along_y(index: Tensor) -> Tensor:
        return torch.lerp(along_z(index), along_z(index + back), y)

    return torch.lerp(along_y(first), along_y(first + right), x) * inside
