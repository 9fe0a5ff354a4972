"""Volume rendering: cameras -> rays -> samples in occupied cells -> field -> colour, opacity, depth, normals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nerf_bridge.ops.composite import composite
from nerf_bridge.ops.field_composite import field_composite, pixels_of
from nerf_bridge.ops.march import BOX_DIAGONAL, march_rays
from nerf_bridge.scene.cameras import Cameras
from nerf_bridge.scene.field import Field, is_raw
from nerf_bridge.scene.rays import Rays, camera_rays
from nerf_bridge.scene.shading import Shading, headlight_directions, shade


@dataclass(frozen=True)
class Rendering:
    """Pictures of b views, row 0 at the top.

    Attributes:
        color: [b, h, w, 3] in 0..1, in front of the background.
        opacity: [b, h, w] in 0..1.
        depth: [b, h, w], expected distance along the ray, sum of weight * t: divide by the opacity for a mean.
        normals: [b, h, w, 3] in world space, unit where something is seen, else zero; None unless asked for.
        thickness: [b, h, w], variance of the depth along the ray, sum of weight * (t - mean)^2: softness.
        n_samples: points at which the field was evaluated.
        overflow: bool, no dimensions, where a capacity was given: whether samples were left out for want of room.
    """

    color: Tensor
    opacity: Tensor
    depth: Tensor
    normals: Tensor | None
    thickness: Tensor
    n_samples: int
    overflow: Tensor | None = None


def render(
    field: Field,
    occupied: Tensor,
    cameras: Cameras,
    size: int | tuple[int, int],
    background: Tensor,
    step_size: float,
    backend: str,
    shading: Shading = "albedo",
    light_dir: Tensor | None = None,
    jitter: Tensor | None = None,
    with_normals: bool = False,
    capacity: int | None = None,
    samples_at_once: int | None = None,
) -> Rendering:
    """Render views of a field by emission and absorption (Max 1995; Mildenhall et al. 2020, eq. 3).

    Differentiable in the field's parameters and in the background, through every output.

    Args:
        field: density and albedo in the box [-1, 1]^3.
        occupied: [R, R, R] bool, indexed x, y, z: the cells to march through.
        cameras: b cameras, on the device of the field.
        size: height and width in pixels, or one number for both.
        background: [b, 3], one colour a view, or [b, h, w, 3], one a pixel.
        step_size: length of a marching step, in units of the box.
        backend: 'cuda', 'cpu' or 'torch'.
        shading: how colours are lit; all but 'albedo' evaluate the field's normals.
        light_dir: [b, 3], unit, from the object to the light; None: from the camera. Unused for 'albedo'.
        jitter: [b * h * w] in [0, 1), by which each ray's samples are shifted, in steps; None: not shifted.
        with_normals: also composite normals.
        capacity: samples to make room for, for all views together; None: as many as there are. With it the host never
            waits for the device, so that a CUDA graph can hold forward and backward pass; whether the room was enough
            is in the rendering's `overflow`.
        samples_at_once: most samples in memory at once, forward and backward, for more time: the rays are rendered in
            parts, and again in the backward pass; None: all at once. Takes the place of `capacity`.

    Returns:
        The rendering; where no cell is occupied, the background.
    """
    height, width = (size, size) if isinstance(size, int) else size
    rays = camera_rays(cameras, height, width, backend)
    light = _light_per_ray(cameras, height, width, shading, light_dir)
    behind = _per_ray(background, height, width)
    arguments = (field, occupied, rays, behind, step_size, backend, shading, light, jitter, with_normals)
    if samples_at_once is None:
        if capacity is not None and len(rays) == 0:
            capacity = 0  # spare rows belong to ray 0, and there is none
        flat = _render_rays(*arguments, capacity)
    else:
        flat = _render_in_parts(*arguments, samples_at_once)
    return _as_pictures(flat, len(cameras), height, width)


@torch.no_grad()
def render_in_chunks(
    field: Field,
    occupied: Tensor,
    cameras: Cameras,
    size: int | tuple[int, int],
    background: Tensor,
    step_size: float,
    backend: str,
    shading: Shading = "albedo",
    with_normals: bool = False,
    max_samples: int = 2**19,
) -> Rendering:
    """Like `render` without gradient, jitter or a light away from the camera, in bounded memory.

    Args:
        max_samples: most samples in memory at once; pictures of any size take as many chunks of rays as that needs.
    """
    return render(
        field,
        occupied,
        cameras,
        size,
        background,
        step_size,
        backend,
        shading,
        with_normals=with_normals,
        samples_at_once=max_samples,
    )


def _render_in_parts(
    field: Field,
    occupied: Tensor,
    rays: Rays,
    behind: Tensor,
    step_size: float,
    backend: str,
    shading: Shading,
    light: Tensor | None,
    jitter: Tensor | None,
    with_normals: bool,
    samples_at_once: int,
) -> Rendering:
    """What `_render_rays` gives, part by part; with gradients each part keeps its rays alone and is rendered again in
    the backward pass: marching is deterministic, so that the second time is the first one's twin."""
    n_rays = max(1, samples_at_once // math.ceil(BOX_DIAGONAL / step_size + 1.0))
    parts: list[Rendering] = []
    for start in range(0, len(rays), n_rays):
        part = slice(start, start + n_rays)
        some = Rays(rays.origins[part], rays.directions[part])
        lit, shifted = (None if each is None else each[part] for each in (light, jitter))
        arguments = (field, occupied, some, behind[part], step_size, backend, shading, lit, shifted, with_normals)
        if torch.is_grad_enabled():
            parts.append(checkpoint(_render_rays, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(_render_rays(*arguments))
    return Rendering(
        color=torch.cat([part.color for part in parts]),
        opacity=torch.cat([part.opacity for part in parts]),
        depth=torch.cat([part.depth for part in parts]),
        normals=torch.cat([part.normals for part in parts if part.normals is not None]) if with_normals else None,
        thickness=torch.cat([part.thickness for part in parts]),
        n_samples=sum(part.n_samples for part in parts),
    )


def _render_rays(
    field: Field,
    occupied: Tensor,
    rays: Rays,
    behind: Tensor,
    step_size: float,
    backend: str,
    shading: Shading,
    light: Tensor | None,
    jitter: Tensor | None,
    with_normals: bool,
    capacity: int | None = None,
) -> Rendering:
    """A rendering of n rays whose tensors are [n, ...]; `behind` is [n, 3], and so is `light`, None for 'albedo'."""
    samples = march_rays(rays.origins, rays.directions, occupied, step_size, jitter, backend, capacity)
    middles = rays.origins.norm(dim=-1)
    if light is None and not with_normals and is_raw(field):
        raw = field.raw(samples.points, samples.packed_info)
        color, opacity, depth, thickness = field_composite(raw, samples, middles, behind, field.activation, backend)
        return Rendering(color, opacity, depth, None, thickness, samples.n, samples.overflow)
    sigmas, features = field(samples.points)
    if light is not None or with_normals:
        normals = field.normals(samples.points)
        if light is not None:
            features = shade(features, normals, light.index_select(0, samples.ray_indices), shading)
        if with_normals:
            features = torch.cat([features, normals], dim=-1)
    u = (samples.t_mids - middles.index_select(0, samples.ray_indices))[:, None]
    packed = (samples.t_starts, samples.t_ends, samples.packed_info)
    summed, opacity, _, _ = composite(sigmas, torch.cat([features, u, u * u], dim=-1), *packed, backend)
    color, opacity, depth, thickness = pixels_of(summed, opacity, middles, behind)
    unit = _unit(summed[:, 3:6]) if with_normals else None
    return Rendering(color, opacity, depth, unit, thickness, samples.n, samples.overflow)


def _light_per_ray(
    cameras: Cameras, height: int, width: int, shading: Shading, light_dir: Tensor | None
) -> Tensor | None:
    """The light's direction for each ray, [b * h * w, 3]; None for 'albedo'."""
    if shading == "albedo":
        return None
    return _per_ray(headlight_directions(cameras) if light_dir is None else light_dir, height, width)


def _per_ray(values: Tensor, height: int, width: int) -> Tensor:
    """Values [b, 3] of the views, or [b, h, w, 3] of the pixels, as [b * h * w, 3]."""
    if values.dim() == 2:
        values = values[:, None, None, :].expand(-1, height, width, -1)
    return values.reshape(-1, 3)


def _unit(summed: Tensor) -> Tensor:
    """Vectors [n, 3] at unit length; those much shorter than 1e-3 fade to zero, so that the derivative stays finite."""
    return summed * torch.rsqrt((summed * summed).sum(-1, keepdim=True) + 1e-6)


def _as_pictures(flat: Rendering, b: int, height: int, width: int) -> Rendering:
    return Rendering(
        color=flat.color.view(b, height, width, 3),
        opacity=flat.opacity.view(b, height, width),
        depth=flat.depth.view(b, height, width),
        normals=None if flat.normals is None else flat.normals.view(b, height, width, 3),
        thickness=flat.thickness.view(b, height, width),
        n_samples=flat.n_samples,
        overflow=flat.overflow,
    )
