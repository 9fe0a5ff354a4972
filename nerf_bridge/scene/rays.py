"""Camera pixels to rays."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nerf_bridge.ops.rays import pixel_rays
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


def camera_rays(cameras: Cameras, height: int, width: int, backend: str = "torch") -> Rays:
    """One ray through the centre of each pixel.

    Args:
        cameras: b cameras; the field of view is that of the height, pixels are square.
        height, width: of the image, in pixels.
        backend: 'cuda', 'cpu' or 'torch': what works them out.

    Returns:
        Rays, n = b * height * width, in the order [view, row, column]; row 0 is the top, column 0 the left.
    """
    return Rays(*pixel_rays(cameras.c2w, cameras.fovy_rad, height, width, backend))
