"""What the field looks like from all around, and how well a mesh agrees with it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from nerf_bridge.mesh.data import Mesh, Silhouettes
from nerf_bridge.ops.raster import clip_positions, rasterize
from nerf_bridge.render import render_in_chunks
from nerf_bridge.scene.cameras import orbit_cameras
from nerf_bridge.scene.field import Field

OPAQUE = 0.5
"""Opacity above which a pixel belongs to the field's silhouette."""
VIEWS, SIZE = 18, 128
ELEVATIONS_DEG = (0.0, 20.0, 40.0)
"""Of the views in turn; by default the training cameras stand between -10 and 45 degrees."""


def render_silhouettes(field: Field, occupied: Tensor, step_size: float, backend: str) -> Silhouettes:
    """VIEWS renders of the field's opacity, once around it, on the device of `occupied`.

    Args:
        field: the field.
        occupied: [r, r, r] bool over the box.
        step_size: of the marcher, in units of the box.
        backend: 'cuda', 'cpu' or 'torch'.
    """
    azimuth = torch.arange(VIEWS) * (2 * math.pi / VIEWS)
    elevation = torch.deg2rad(torch.tensor(ELEVATIONS_DEG).repeat(VIEWS)[:VIEWS])
    same = torch.ones(VIEWS)
    cameras = orbit_cameras(azimuth, elevation, 3.0 * same, math.radians(40) * same).to(occupied.device)
    black = torch.zeros(VIEWS, 3, device=occupied.device)
    seen = render_in_chunks(field, occupied, cameras, SIZE, black, step_size, backend)
    return Silhouettes(cameras, seen.opacity)


def opaque_masks(silhouettes: Silhouettes) -> Tensor:
    """[b, h, w] bool; opacity that is not a number counts as nothing."""
    return silhouettes.opacity > OPAQUE


def mean_iou(seen: Tensor, masks: Tensor) -> float:
    """Mean over the views of intersection over union of two stacks of silhouettes [b, h, w]; 1 where both are empty."""
    both, either = (seen & masks).sum(dim=(1, 2)), (seen | masks).sum(dim=(1, 2))
    return float(torch.where(either > 0, both / either.clamp_min(1), 1.0).mean())


def silhouette_iou(mesh: Mesh, silhouettes: Silhouettes, backend: str) -> float:
    """Mean over the views of intersection over union, in 0..1, of a mesh's silhouettes with the field's."""
    masks = opaque_masks(silhouettes)
    faces = torch.as_tensor(mesh.faces.astype(np.int32), device=masks.device)
    vertices = torch.as_tensor(mesh.vertices, device=masks.device).float()
    height, width = masks.shape[1:]
    positions = clip_positions(vertices, silhouettes.cameras.to(masks.device), width / height)
    seen = [rasterize(view, faces, height, width, backend).covered for view in positions]
    return mean_iou(torch.stack(seen), masks)
