"""The scene as one record: field, occupancy, environment, and how they are rendered."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nerf_bridge.config import GenerateConfig
from nerf_bridge.scene.background import LearnedEnvironment
from nerf_bridge.scene.field import HashGridField
from nerf_bridge.scene.occupancy import OccupancyGrid


@dataclass(frozen=True)
class Scene:
    """What is optimised, and how it is rendered."""

    field: HashGridField
    occupancy: OccupancyGrid
    environment: LearnedEnvironment
    step_size: float
    backend: str
    device: torch.device


def build_scene(config: GenerateConfig, backend: str, device: torch.device) -> Scene:
    """The scene that a run starts from: a grey ball in full view, every cell counted as occupied."""
    return Scene(
        field=HashGridField(config.field, config.seed, backend).to(device),
        occupancy=OccupancyGrid(config.occupancy.resolution).to(device),
        environment=LearnedEnvironment(config.seed).to(device),
        step_size=2.0 / config.render.samples_across,
        backend=backend,
        device=device,
    )
