"""Fields with a known surface, and what they look like, for the tests of the exporter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nerf_bridge.mesh.data import Silhouettes
from nerf_bridge.scene.cameras import Cameras, turntable_cameras
from nerf_bridge.scene.rays import camera_rays

FOVY = math.radians(40.0)
SOFTNESS = 0.01

RED, GREEN, BLUE, YELLOW = (0.9, 0.1, 0.1), (0.1, 0.8, 0.2), (0.1, 0.2, 0.9), (0.9, 0.8, 0.1)


@dataclass(frozen=True)
class AnalyticField:
    """Density peak * sigmoid(-distance / softness) of the nearest of some coloured parts.

    `parts` are (signed distance [n, 3] -> [n], colour); the surface lies where the distance is 0, at density peak / 2.
    """

    parts: Sequence[tuple[Callable[[Tensor], Tensor], tuple[float, float, float]]]
    peak: float = 80.0
    softness: float = SOFTNESS

    def distances(self, points: Tensor) -> Tensor:
        return torch.stack([distance(points) for distance, _ in self.parts])

    def density(self, points: Tensor) -> Tensor:
        return self.peak * torch.sigmoid(-self.distances(points).amin(dim=0) / self.softness)

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        nearest = self.distances(points).argmin(dim=0)
        colors = torch.tensor([color for _, color in self.parts])
        return self.density(points), colors[nearest]


def box(center: tuple[float, float, float], half: tuple[float, float, float]) -> Callable[[Tensor], Tensor]:
    def distance(points: Tensor) -> Tensor:
        q = (points - torch.tensor(center)).abs() - torch.tensor(half)
        return q.clamp_min(0).norm(dim=-1) + q.amax(dim=-1).clamp_max(0)

    return distance


def sphere(center: tuple[float, float, float], radius: float) -> Callable[[Tensor], Tensor]:
    return lambda points: (points - torch.tensor(center)).norm(dim=-1) - radius


def torus(major: float, minor: float) -> Callable[[Tensor], Tensor]:
    """Around the z axis."""
    return lambda points: torch.hypot(torch.hypot(points[:, 0], points[:, 1]) - major, points[:, 2]) - minor


def sphere_field() -> AnalyticField:
    return AnalyticField([(sphere((0.0, 0.0, 0.0), 0.6), RED)])


def torus_field() -> AnalyticField:
    return AnalyticField([(torus(0.5, 0.2), GREEN)])


L_FOOT = ((0.1, 0.0, -0.45), (0.6, 0.3, 0.15))
L_POST = ((-0.35, 0.0, 0.05), (0.15, 0.3, 0.55))
L_NOSE = ((0.5, -0.35, -0.45), (0.1, 0.1, 0.1))


def l_field() -> AnalyticField:
    """A red foot along +x, a blue post at its -x end, and a yellow nose at the front (-y) of its +x end."""
    return AnalyticField([(box(*L_FOOT), RED), (box(*L_POST), BLUE), (box(*L_NOSE), YELLOW)])


def all_occupied(resolution: int = 32) -> Tensor:
    return torch.ones((resolution,) * 3, dtype=torch.bool)


def opacity_of(field: AnalyticField, cameras: Cameras, size: int, n_samples: int = 160) -> Tensor:
    """[b, size, size] opacity of the field between the box's walls, by plain marching."""
    rays = camera_rays(cameras, size, size)
    t = torch.linspace(1.2, 4.8, n_samples)
    step = float(t[1] - t[0])
    depth = torch.zeros(len(rays.origins))
    for distance in t:
        points = rays.origins + distance * rays.directions
        inside = (points.abs() <= 1).all(dim=-1)
        depth[inside] += torch.nan_to_num(field.density(points[inside])) * step
    return (1 - torch.exp(-depth)).reshape(len(cameras), size, size)


def silhouettes_of(field: AnalyticField, views: int = 8, size: int = 64) -> Silhouettes:
    cameras = turntable_cameras(views, math.radians(15.0), 3.0, FOVY)
    return Silhouettes(cameras, opacity_of(field, cameras, size))


def clear_points(field: AnalyticField, points: Tensor, margin: float = 0.06) -> Tensor:
    """[n] bool: points whose nearest part is nearer than any other by `margin`: no doubt about their colour."""
    distances = field.distances(points).sort(dim=0).values
    return distances[1] - distances[0] > margin


def surface_error(field: AnalyticField, points: Tensor) -> Tensor:
    """[n] distance of points from where the field's parts end."""
    return field.distances(points).amin(dim=0).abs()
