"""Prints digests of all pictures and gradients of some renders: what must repeat, in this process and in the next.

    CUBLAS_WORKSPACE_CONFIG=:4096:8 python tests/deterministic_render.py cuda 64

The arguments are the device, which is also the backend, and the pictures' size.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable

import torch
from torch import Tensor

from nerf_bridge.config import FieldConfig
from nerf_bridge.render import render
from nerf_bridge.scene.cameras import turntable_cameras
from nerf_bridge.scene.field import HashGridField

FIELD = FieldConfig(
    n_levels=8, n_features=2, log2_table_size=12, base_resolution=4, finest_resolution=128, hidden_width=32
)
VIEWS = 4
SHADINGS = ("albedo", "lambertian")
ROUNDS = 3


def digests(device: str, size: int) -> list[str]:
    """One digest for each way to shade: of colour, opacity, depth, thickness, and the gradients over all parameters."""
    generator = torch.Generator().manual_seed(0)
    field = HashGridField(FIELD, seed=0, backend=device)
    with torch.no_grad():
        field.table.uniform_(-0.5, 0.5, generator=generator)
    field = field.to(device)
    occupied = (torch.rand(16, 16, 16, generator=generator) < 0.7).to(device)
    jitter = torch.rand(VIEWS * size * size, generator=generator).to(device)
    background = torch.rand(VIEWS, 3, generator=generator).to(device).requires_grad_()
    cameras = turntable_cameras(VIEWS, 0.3, 2.0, math.radians(55)).to(device)
    found = []
    for shading in SHADINGS:
        views = (field, occupied, cameras, size, background, 2.0 / size, device)
        picture = render(*views, shading, jitter=jitter, with_normals=shading != "albedo")
        outputs = [picture.color, picture.opacity, picture.depth, picture.thickness]
        loss = sum((out * out).sum() for out in outputs)
        gradients = torch.autograd.grad(loss, [*field.parameters(), background])
        assert all(float(gradient.abs().max()) > 0 for gradient in gradients)
        found.append(digest([*outputs, *gradients]))
    return found


def digest(tensors: Iterable[Tensor]) -> str:
    """Of all their bits."""
    summed = hashlib.sha256()
    for tensor in tensors:
        summed.update(tensor.detach().cpu().numpy().tobytes())
    return summed.hexdigest()


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    for _ in range(ROUNDS):
        sys.stdout.write(" ".join(digests(sys.argv[1], int(sys.argv[2]))) + "\n")
