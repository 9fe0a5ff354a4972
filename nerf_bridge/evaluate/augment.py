"""Changes to true renders while the evaluator is trained, so that it knows a thing also where it is drawn badly.

Each draws from `generator`, on the device of the images, for every image of a batch alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

ZOOM, SHIFT, ROLL_DEG = (0.75, 1.2), 0.12, 10.0


def uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers in low..high, on the generator's device."""
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def move(layers: Tensor, generator: torch.Generator) -> Tensor:
    """Zoom, shift, roll and mirror layers [b, c, h, w] float; nothing comes in from outside."""
    b = len(layers)
    roll = math.radians(ROLL_DEG) * uniform(-1, 1, (b,), generator)
    zoom = uniform(*ZOOM, (b,), generator)
    mirror = torch.where(uniform(0, 1, (b,), generator) < 0.5, -1.0, 1.0)
    shift = uniform(-SHIFT, SHIFT, (b, 2), generator)
    cos, sin = roll.cos() / zoom, roll.sin() / zoom
    rows = torch.stack(
        [torch.stack([cos * mirror, -sin, shift[:, 0]], -1), torch.stack([sin * mirror, cos, shift[:, 1]], -1)], 1
    )
    grid = functional.affine_grid(rows, list(layers.shape), align_corners=False)
    return functional.grid_sample(layers, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def backgrounds(b: int, generator: torch.Generator) -> Tensor:
    """[b, 3]: a third white, a third grey levels, a third any colour."""
    kind = uniform(0, 1, (b, 1), generator)
    colour = uniform(0, 1, (b, 3), generator)
    return torch.where(kind < 1 / 3, torch.ones_like(colour), torch.where(kind < 2 / 3, colour[:, :1], colour))


def spoil(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Uneven light, contrast, blur, noise and a covered patch on images [b, 3, h, w] in 0..1; the same range.

    Args:
        strength: 0 (nothing) to 1 (mild).
    """
    b, _, height, width = images.shape
    one = (b, 1, 1, 1)
    light = 1 + strength * uniform(-0.25, 0.15, (b, 1, 4, 4), generator)
    images = images * functional.interpolate(light, (height, width), mode="bilinear", align_corners=False)
    middle = images.mean((1, 2, 3), keepdim=True)
    images = middle + (images - middle) * (1 + strength * uniform(-0.25, 0.2, one, generator))
    smooth = functional.avg_pool2d(functional.pad(images, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    images = torch.lerp(images, smooth, strength * uniform(-0.8, 0.9, one, generator).clamp(min=0))
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    images = images + strength * noise * uniform(-0.04, 0.04, one, generator).clamp(min=0)
    return cover(images, strength, generator).clamp(0, 1)


def cover(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """A grey box over a part of half of the images [b, 3, h, w]; `strength` scales its sides."""
    b, _, height, width = images.shape
    middle, size = uniform(0, 1, (b, 2), generator), strength * uniform(0.05, 0.25, (b, 2), generator)
    size = size * (uniform(0, 1, (b, 1), generator) < 0.5)
    y = (torch.arange(height, device=images.device) + 0.5) / height
    x = (torch.arange(width, device=images.device) + 0.5) / width
    inside_y = (y - middle[:, :1]).abs() < 0.5 * size[:, :1]
    inside_x = (x - middle[:, 1:]).abs() < 0.5 * size[:, 1:]
    inside = inside_y[:, None, :, None] & inside_x[:, None, None, :]
    return torch.where(inside, uniform(0, 1, (b, 1, 1, 1), generator), images)
