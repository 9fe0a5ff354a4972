"""Camera pixels to rays."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nerf_bridge.scene.cameras import Cameras


@dataclass(frozen=True)
class Rays:
    """Half-lines in world space.

    Attributes:
        origins: [n, 3] float32.
        directions: [n, 3] float32, unit length.
    """

    origins: Tensor
    directions: Tensor

    def __len__(self) -> int:
        return self.origins.shape[0]


def camera_rays(cameras: Cameras, height: int, width: int) -> Rays:
    """One ray through the centre of each pixel.

    Args:
        cameras: b cameras; the field of view is that of the height, pixels are square.
        height, width: of the image, in pixels.

    Returns:
        Rays, n = b * height * width, in the order [view, row, column]; row 0 is the top, column 0 the left.
    """
    device = cameras.c2w.device
    columns = torch.arange(width, dtype=torch.float32, device=device) + (0.5 - 0.5 * width)
    rows = (0.5 * height - 0.5) - torch.arange(height, dtype=torch.float32, device=device)
    tan_half = torch.tan(0.5 * cameras.fovy_rad) / (0.5 * height)
    right, up, backward, position = cameras.c2w[:, None, None, :3, :].unbind(-1)
    across = (columns[None, None, :, None] * tan_half[:, None, None, None]) * right
    along = (rows[None, :, None, None] * tan_half[:, None, None, None]) * up
    directions = torch.nn.functional.normalize(across + along - backward, dim=-1)
    origins = position.expand_as(directions)
    return Rays(origins.reshape(-1, 3), directions.reshape(-1, 3))
