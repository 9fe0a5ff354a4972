"""The prior's training images: every model rendered once from many cameras, composed anew each time one is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.render_views import render_views
from nerf_bridge.scene.cameras import Cameras, orbit_cameras

ELEVATION_DEG = (-15.0, 55.0)
DISTANCE = (2.8, 3.2)
FOVY_DEG = 40.0


@dataclass(frozen=True)
class RenderedViews:
    """Layers of n views, view j of model i at row i * per_model + j; see render_views for the 8 channels.

    Attributes:
        layers: [n, 8, size, size] uint8.
        cameras: n cameras.
        per_model: views of each model.
    """

    layers: Tensor
    cameras: Cameras
    per_model: int

    def to(self, device: torch.device | str) -> RenderedViews:
        """The same views on `device`."""
        return RenderedViews(self.layers.to(device), self.cameras.to(device), self.per_model)


def training_cameras(n: int, generator: torch.Generator) -> Cameras:
    """n cameras: azimuth uniform, elevation uniform on the sphere in ELEVATION_DEG, distance uniform in DISTANCE."""
    azimuth, height, distance = torch.rand(3, n, generator=generator, dtype=torch.float64)
    low, high = (math.sin(math.radians(e)) for e in ELEVATION_DEG)
    distance = DISTANCE[0] + (DISTANCE[1] - DISTANCE[0]) * distance
    fovy = torch.full_like(distance, math.radians(FOVY_DEG))
    return orbit_cameras(2 * math.pi * azimuth, torch.asin(low + (high - low) * height), distance, fovy)


def render_library(
    models: Sequence[LibraryModel], per_model: int, seed: int, size: int, n_threads: int, show_progress: bool = True
) -> RenderedViews:
    """Render `per_model` views of every model from cameras drawn with `seed`."""
    generator = torch.Generator().manual_seed(seed)
    cameras = training_cameras(len(models) * per_model, generator)
    layers = torch.empty(len(cameras), 8, size, size, dtype=torch.uint8)
    for i, model in enumerate(tqdm(models, "rendering models", disable=not show_progress)):
        rows = slice(i * per_model, (i + 1) * per_model)
        layers[rows] = render_model(model, cameras[rows], size, n_threads)
    return RenderedViews(layers, cameras, per_model)


def render_model(model: LibraryModel, cameras: Cameras, size: int, n_threads: int = 1, supersample: int = 4) -> Tensor:
    """Layers [n, 8, size, size] uint8 of a model from n cameras; see render_views."""
    return torch.from_numpy(
        render_views(
            model.vertices,
            model.faces,
            model.face_colors,
            model.face_tintable,
            cameras.c2w.numpy(),
            cameras.fovy_rad.numpy(),
            size=size,
            supersample=supersample,
            n_threads=n_threads,
        )
    )


def camera_numbers(cameras: Cameras) -> Tensor:
    """Azimuth, elevation, distance and field of view of n cameras, [n, 4], as camera_features takes them."""
    return torch.stack([cameras.azimuth_rad, cameras.elevation_rad, cameras.distance, cameras.fovy_rad], -1)


def compose(layers: Tensor, tint: Tensor, tinted: Tensor, background: Tensor) -> Tensor:
    """Images [b, 3, h, w] in 0..1 from layers [b, 8, h, w] uint8.

    Args:
        tint: colour of the tintable part, [b, 3]; used where `tinted` [b] is true.
        background: [b, 3].
    """
    x = layers.float() / 255
    own = x[:, 0:3] + x[:, 3:6]
    retinted = x[:, 0:3] + tint[:, :, None, None] * x[:, 6:7]
    return torch.where(tinted[:, None, None, None], retinted, own) + (1 - x[:, 7:8]) * background[:, :, None, None]
