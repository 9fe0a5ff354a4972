"""The density of the surface: the one whose mesh throws the same silhouettes as the field."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nerf_bridge.errors import RunError
from nerf_bridge.mesh.data import DensityGrid, Mesh, Silhouettes, ThresholdChoice
from nerf_bridge.mesh.surface import marching_cubes
from nerf_bridge.ops.raster import clip_positions, rasterize

OPAQUE = 0.5
"""Opacity above which a pixel belongs to the field's silhouette."""
LOWEST_DENSITY = 0.5
"""Least candidate: light crosses the box's whole side in such a medium, so that nothing below can be a surface."""
COARSE, FINE = 12, 6
"""Candidates over the whole range, then between the neighbours of the best of them."""
SEARCH_RESOLUTION = 128
"""Cells along a side at which candidates are tried; a finer grid is thinned out first."""
FOG_IOU = 0.25
"""Agreement below which no threshold makes the field's silhouettes: it is fog."""
ADVICE = "optimise for longer (--steps), raise guidance.scale, lower optim.weight_opacity, or try another --seed"


def choose_threshold(grid: DensityGrid, silhouettes: Silhouettes, backend: str) -> ThresholdChoice:
    """Try densities on a logarithmic scale, then finer ones around the best, and keep the best mean IoU.

    Args:
        grid: density samples.
        silhouettes: what the field looks like; opacity above OPAQUE counts.
        backend: of the rasteriser.

    Returns:
        The choice and its curve.

    Raises:
        RunError: the field is empty or fog; says what to do.
    """
    masks = opaque_masks(silhouettes)
    highest = float(grid.sigma.max())
    check_not_empty(grid, masks)
    thinned = _thinned(grid)
    coarse = np.geomspace(LOWEST_DENSITY, 0.95 * highest, COARSE)
    curve = {float(t): _agreement(thinned, float(t), silhouettes, masks, backend) for t in coarse}
    best = int(np.argmax(list(curve.values())))
    around = np.geomspace(coarse[max(best - 1, 0)], coarse[min(best + 1, COARSE - 1)], FINE + 2)[1:-1]
    curve |= {float(t): _agreement(thinned, float(t), silhouettes, masks, backend) for t in around}
    threshold = max(curve, key=lambda t: curve[t])
    if curve[threshold] < FOG_IOU:
        raise RunError(
            f"the field is fog without a surface: its best mesh shares only {100 * curve[threshold]:.0f} % of the "
            f"silhouettes; {ADVICE}"
        )
    return ThresholdChoice(threshold, curve[threshold], tuple(sorted(curve.items())))


def _thinned(grid: DensityGrid) -> DensityGrid:
    """The means of whole blocks of samples, at most SEARCH_RESOLUTION along a side where such blocks exist."""
    n = grid.sigma.shape[0]
    block = next((s for s in range(-(-n // SEARCH_RESOLUTION), n // 16) if n % s == 0), 1)
    if block == 1:
        return grid
    m = n // block
    return DensityGrid(grid.sigma.reshape(m, block, m, block, m, block).mean(axis=(1, 3, 5)), 0)


def opaque_masks(silhouettes: Silhouettes) -> Tensor:
    """[b, h, w] bool on the CPU; opacity that is not a number counts as nothing."""
    return (silhouettes.opacity > OPAQUE).cpu()


def check_not_empty(grid: DensityGrid, masks: Tensor) -> None:
    """Raise RunError with advice when the field holds nothing that could have a surface."""
    highest = float(grid.sigma.max())
    if highest <= LOWEST_DENSITY:
        bad = " (and it is not finite in places)" if grid.non_finite else ""
        raise RunError(
            f"the scene is empty: the field's highest density is {highest:.3g}{bad}, which is no surface; {ADVICE}"
        )
    if not masks.any():
        raise RunError(
            f"the field is fog: it is not opaque in any view, though its density reaches {highest:.3g}; {ADVICE}"
        )


def silhouette_iou(mesh: Mesh, silhouettes: Silhouettes, backend: str) -> float:
    """Mean over the views of intersection over union, in 0..1, of a mesh's silhouettes with the field's."""
    return _mean_iou(mesh, silhouettes, opaque_masks(silhouettes), backend)


def _agreement(grid: DensityGrid, threshold: float, silhouettes: Silhouettes, masks: Tensor, backend: str) -> float:
    return _mean_iou(marching_cubes(grid, threshold), silhouettes, masks, backend)


def _mean_iou(mesh: Mesh, silhouettes: Silhouettes, masks: Tensor, backend: str) -> float:
    faces = torch.as_tensor(mesh.faces.astype(np.int32))
    height, width = masks.shape[1:]
    positions = clip_positions(torch.as_tensor(mesh.vertices).float(), silhouettes.cameras.to("cpu"), width / height)
    total = 0.0
    for view, mask in zip(positions, masks, strict=True):
        seen = rasterize(view, faces, height, width, backend).covered
        union = int((seen | mask).sum())
        total += int((seen & mask).sum()) / union if union else 1.0
    return total / len(masks)
