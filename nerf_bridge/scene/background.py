"""What is behind the object: one colour a view, or a learned environment."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from nerf_bridge.scene.cameras import Cameras
from nerf_bridge.scene.rays import camera_rays

SolidBackground = Literal["random", "white", "grey"]
GREY = 0.5


def solid_backgrounds(kind: SolidBackground, n_views: int, generator: torch.Generator) -> Tensor:
    """One colour for each view.

    Args:
        kind: 'random' draws each view's colour uniformly from the RGB cube; 'white' and 'grey' draw nothing.
        n_views: b.
        generator: source of the draws; the colours come on its device.

    Returns:
        [b, 3] in 0..1.
    """
    if kind == "random":
        return torch.rand(n_views, 3, generator=generator, device=generator.device)
    return torch.full((n_views, 3), 1.0 if kind == "white" else GREY, device=generator.device)


class LearnedEnvironment(nn.Module):
    """A smooth environment: a small MLP from the viewing direction to a colour; mid-grey at the start.

    Differentiable in its parameters and in the directions.
    """

    def __init__(self, seed: int, hidden_width: int = 16) -> None:
        """Make it on the CPU, from a generator of its own that starts at `seed`."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.hidden_weight = nn.Parameter(2.0 * torch.rand(hidden_width, 9, generator=generator) - 1.0)
        self.hidden_bias = nn.Parameter(torch.zeros(hidden_width))
        self.out_weight = nn.Parameter(1e-2 * (2.0 * torch.rand(3, hidden_width, generator=generator) - 1.0))
        self.out_bias = nn.Parameter(torch.zeros(3))

    def forward(self, directions: Tensor) -> Tensor:
        """Colours [n, 3] in 0..1 for unit directions [n, 3]."""
        x, y, z = directions.unbind(-1)
        squares = torch.stack([x * y, y * z, z * x, x * x - y * y, 3.0 * z * z - 1.0, torch.ones_like(x)], dim=-1)
        inputs = torch.cat([directions, squares], dim=-1)  # the real spherical harmonics up to degree 2, unscaled
        hidden = nn.functional.linear(inputs, self.hidden_weight, self.hidden_bias).relu()
        return torch.sigmoid(nn.functional.linear(hidden, self.out_weight, self.out_bias))


def backgrounds(
    environment: LearnedEnvironment, cameras: Cameras, size: int, backend: str, solid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What is behind b views of `size` pixels a side, and its mean colour in each.

    Args:
        environment: is behind them where `solid` is None.
        solid: one colour a view, [b, 3].

    Returns:
        [b, 3] or [b, size, size, 3], and [b, 3] without gradient.
    """
    if solid is not None:
        return solid, solid
    rays = camera_rays(cameras, size, size, backend)
    seen = environment(rays.directions).view(len(cameras), size, size, 3)
    return seen, seen.detach().mean((1, 2))
