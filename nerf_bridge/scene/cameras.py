"""Cameras on a sphere around the object: drawn for training, or evenly spaced for a turntable.

World: right-handed, z up, the object's front faces -y. Cameras are OpenGL: x right, y up, looking along -z.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nerf_bridge.config import CameraConfig


@dataclass(frozen=True)
class Cameras:
    """Pinhole cameras with square pixels that look at the origin.

    Attributes:
        c2w: [b, 4, 4] float32, camera to world, rotation part of determinant +1.
        fovy_rad: [b] float32, full vertical field of view.
        azimuth_rad: [b] float32; 0 is the front view, growing counter-clockwise seen from above.
        elevation_rad: [b] float32, above the horizon.
        distance: [b] float32, from the origin, in units of the box [-1, 1]^3.
    """

    c2w: Tensor
    fovy_rad: Tensor
    azimuth_rad: Tensor
    elevation_rad: Tensor
    distance: Tensor

    def __len__(self) -> int:
        return self.c2w.shape[0]

    def __getitem__(self, index: slice | Sequence[int]) -> Cameras:
        """The cameras at a slice or at a list of indices (one camera: `cameras[i : i + 1]` or `cameras[[i]]`).

        Raises:
            TypeError: for a single integer, which would drop the batch dimension.
        """
        if isinstance(index, int):
            raise TypeError(f"cameras[{index}] would drop the batch dimension: use cameras[[{index}]]")
        chosen = index if isinstance(index, slice) else torch.as_tensor(index, device=self.c2w.device)
        return Cameras(
            c2w=self.c2w[chosen],
            fovy_rad=self.fovy_rad[chosen],
            azimuth_rad=self.azimuth_rad[chosen],
            elevation_rad=self.elevation_rad[chosen],
            distance=self.distance[chosen],
        )

    def repeat(self, times: int) -> Cameras:
        """The whole list `times` times over; as indexing would, without making the host wait for the device."""
        return Cameras(
            c2w=self.c2w.repeat(times, 1, 1),
            fovy_rad=self.fovy_rad.repeat(times),
            azimuth_rad=self.azimuth_rad.repeat(times),
            elevation_rad=self.elevation_rad.repeat(times),
            distance=self.distance.repeat(times),
        )

    def to(self, device: torch.device | str) -> Cameras:
        """The same cameras on `device`."""
        return Cameras(
            c2w=self.c2w.to(device),
            fovy_rad=self.fovy_rad.to(device),
            azimuth_rad=self.azimuth_rad.to(device),
            elevation_rad=self.elevation_rad.to(device),
            distance=self.distance.to(device),
        )


def orbit_cameras(azimuth_rad: Tensor, elevation_rad: Tensor, distance: Tensor, fovy_rad: Tensor) -> Cameras:
    """Cameras at distance * (cos e sin a, -cos e cos a, sin e) that look at the origin with +z up.

    Args:
        azimuth_rad, elevation_rad, distance, fovy_rad: each [b], any float type; see `Cameras`.

    Returns:
        Cameras in float32 (the matrices are worked out in float64). At the poles "up" is the limit along the meridian.
    """
    a, e, d = azimuth_rad.double(), elevation_rad.double(), distance.double()
    zero = torch.zeros_like(a)
    right = torch.stack([a.cos(), a.sin(), zero], dim=-1)
    backward = torch.stack([e.cos() * a.sin(), -e.cos() * a.cos(), e.sin()], dim=-1)
    up = torch.linalg.cross(backward, right)
    c2w = torch.eye(4, dtype=torch.float64, device=a.device).repeat(a.shape[0], 1, 1)
    c2w[:, :3, :] = torch.stack([right, up, backward, backward * d[:, None]], dim=-1)
    return Cameras(c2w.float(), fovy_rad.float(), a.float(), e.float(), d.float())


def sample_cameras(settings: CameraConfig, generator: torch.Generator, group: int = 1) -> Cameras:
    """Draw the views of one training step.

    Azimuths are evenly spaced with one random offset, so that each of the `views` equal sectors holds one view;
    elevations are uniform on the sphere (in sin e); distances and fields of view uniform in their ranges. The views of
    a group are evenly spaced around the object and share elevation, distance and field of view.

    Args:
        settings: number of views, a multiple of `group`, and ranges.
        generator: source of every draw; the cameras come on its device.
        group: views that belong together; they come one after the other.

    Returns:
        `settings.views` cameras.
    """
    n = settings.views
    n_groups = n // group
    draws = torch.rand(1 + 3 * n_groups, generator=generator, dtype=torch.float64, device=generator.device)
    offset, *rest = draws.split([1, n_groups, n_groups, n_groups])
    in_elevation, in_distance, in_fovy = (drawn.repeat_interleave(group) for drawn in rest)
    sector = torch.arange(n, dtype=torch.float64, device=generator.device).view(group, n_groups).T.flatten()
    azimuth = (sector + offset) * (2 * math.pi / n)
    sin_low, sin_high = (math.sin(math.radians(e)) for e in (settings.elevation_min_deg, settings.elevation_max_deg))
    elevation = torch.asin(sin_low + (sin_high - sin_low) * in_elevation)
    distance = settings.distance_min + (settings.distance_max - settings.distance_min) * in_distance
    fovy_deg = settings.fovy_min_deg + (settings.fovy_max_deg - settings.fovy_min_deg) * in_fovy
    return orbit_cameras(azimuth, elevation, distance, torch.deg2rad(fovy_deg))


def turntable_cameras(n: int, elevation_rad: float, distance: float, fovy_rad: float) -> Cameras:
    """`n` cameras once around the object, from the front view on, on the CPU."""
    azimuth = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
    same = torch.ones_like(azimuth)
    return orbit_cameras(azimuth, elevation_rad * same, distance * same, fovy_rad * same)


def packed(cameras: Cameras) -> Tensor:
    """All that b cameras are, as one tensor [b, 20]."""
    numbers = (cameras.fovy_rad, cameras.azimuth_rad, cameras.elevation_rad, cameras.distance)
    return torch.cat([cameras.c2w.flatten(1), torch.stack(numbers, dim=1)], dim=1)


def unpacked(numbers: Tensor) -> Cameras:
    """The inverse of `packed`."""
    return Cameras(numbers[:, :16].unflatten(1, (4, 4)), *numbers[:, 16:].unbind(1))
