"""A scene that shows every mistake of axes, sides and textures: an L with a red left side, a blue front, a marker."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import torch
from analytic_fields import AnalyticField, all_occupied, box, silhouettes_of, sphere

from nerf_bridge.config import MeshConfig
from nerf_bridge.mesh import export
from nerf_bridge.mesh.data import Asset
from nerf_bridge.render import render_in_chunks
from nerf_bridge.scene.cameras import Cameras

GREY, RED, BLUE, YELLOW = (0.6, 0.6, 0.6), (0.9, 0.1, 0.1), (0.1, 0.2, 0.9), (0.9, 0.8, 0.1)
LOW, HIGH = np.array([-0.55, -0.4, -0.6]), np.array([0.6, 0.4, 0.7])
METADATA = {"prompt": 'an "L", Ä 椅子', "seed": 7, "prior": "oracle", "licence": "Apache-2.0"}


def proof_field() -> AnalyticField:
    """Seen from the front (from -y): a post at the left end of a foot, red at its left (-x), blue at the front.

    A yellow ball sits on the post's top, off its middle; the rest is grey.
    """
    return AnalyticField(
        [
            (box((0.05, 0.04, -0.4), (0.55, 0.36, 0.2)), GREY),
            (box((-0.22, 0.04, 0.0), (0.28, 0.36, 0.5)), GREY),
            (box((-0.525, 0.04, -0.05), (0.025, 0.36, 0.55)), RED),
            (box((0.05, -0.36, -0.4), (0.55, 0.04, 0.2)), BLUE),
            (box((-0.22, -0.36, 0.0), (0.28, 0.04, 0.5)), BLUE),
            (sphere((-0.3, 0.15, 0.55), 0.15), YELLOW),
        ],
        peak=200.0,
        softness=0.003,
    )


def render_field(field: AnalyticField, cameras: Cameras, size: int) -> np.ndarray:
    """[b, size, size, 3] in 0..1: our own picture of the field before white, without light."""
    centres = (torch.arange(32) + 0.5) / 16 - 1
    cells = torch.stack(torch.meshgrid(centres, centres, centres, indexing="ij"), dim=-1).reshape(-1, 3)
    occupied = (field.distances(cells).amin(dim=0) < 0.1).reshape(32, 32, 32)
    seen = render_in_chunks(field, occupied, cameras, size, torch.ones(len(cameras), 3), 0.01, "torch")
    return seen.color.clamp(0, 1).numpy()


def exported_asset(field: AnalyticField, settings: MeshConfig, folder: Path) -> Asset:
    """What the exporter is about to write of `field`; nothing is written."""
    with mock.patch.object(export, "write_asset", side_effect=lambda path, asset, settings: asset.mesh) as writer:
        seen = silhouettes_of(field, 6, 48)
        export.export_mesh(field, all_occupied(), seen, settings, folder / "a.glb", METADATA, "torch", "cpu")
    asset = writer.call_args.args[1]
    assert isinstance(asset, Asset)
    return asset
