"""No rays, no samples, one sample, and room for more, just as many or fewer: on every backend what the torch twin does.

From the march to the pixels and back: every operation with a twin takes what the one before it made.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nerf_bridge.ops.composite import composite
from nerf_bridge.ops.decoder import decode
from nerf_bridge.ops.field_composite import DensityActivation, field_composite
from nerf_bridge.ops.hash_encoding import HashGridSpec, hash_encode, hash_encode_point_gradient
from nerf_bridge.ops.march import Samples, march_rays

BACKENDS = ["torch", pytest.param("cpu", marks=pytest.mark.compiler), pytest.param("cuda", marks=pytest.mark.cuda)]
SPEC = HashGridSpec(n_levels=3, n_features=2, log2_table_size=8, base_resolution=2, finest_resolution=16)
NETWORK = [(SPEC.n_entries, 2), (16, 6), (16,), (4, 16), (4,)]
RAYS = {  # how many rays, which cell of 2 x 2 x 2 is occupied, and how many samples that makes of steps of 0.4
    "no rays": (0, 0, 0),
    "no samples": (3, 0, 0),
    "one sample": (1, 1, 1),
    "some samples": (4, 8, 20),
}
STEP = {"one sample": 0.9}
ROOM = {"just as many": 0, "more": 5, "fewer": -1}
ACTIVATION = DensityActivation("softplus", 2.0, 0.8)


def marched(scene: str, backend: str, room: int | None, device: str) -> Samples:
    n_rays, n_cells, n = RAYS[scene]
    rays_o = torch.tensor([[-3.0, 0.5, 0.5]], device=device).repeat(n_rays, 1)
    rays_d = torch.tensor([[1.0, 0.0, 0.0]], device=device).repeat(n_rays, 1)
    occupied = (torch.arange(8, device=device) >= 8 - n_cells).view(2, 2, 2)
    capacity = None if room is None else max(n + room, 0)
    samples = march_rays(rays_o, rays_d, occupied, STEP.get(scene, 0.4), None, backend, capacity)
    if capacity is not None:
        assert samples.n == capacity and bool(samples.overflow) == (n > capacity)
    return samples


def everything(samples: Samples, backend: str, device: str) -> list[Tensor]:
    """Pixels of both ways to composite, normals, and their gradients over all parameters."""
    generator = torch.Generator().manual_seed(0)
    table, *network = (torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in NETWORK)
    n_rays = len(samples.packed_info)
    behind = torch.full((n_rays, 3), 0.3, device=device, requires_grad=True)
    features = hash_encode(samples.points * 0.5 + 0.5, table, SPEC, backend)
    raw = decode(features, *network, backend)
    pixels = field_composite(raw, samples, torch.full((n_rays,), 3.0, device=device), behind, ACTIVATION, backend)
    normals = hash_encode_point_gradient(samples.points * 0.5 + 0.5, table, features, SPEC, backend)
    packed = (samples.t_starts, samples.t_ends, samples.packed_info)
    summed = composite(raw[:, 0].exp(), torch.cat([raw[:, 1:], normals], dim=1), *packed, backend)
    outputs = [*pixels, *summed]
    loss = sum((i + 1) * out.sin().sum() for i, out in enumerate(outputs))
    grads = torch.autograd.grad(loss, (table, *network, behind))
    return [out.detach().cpu() for out in (*outputs, *grads)]


def close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.numel() == 0:
        return a.shape == b.shape
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max() + 1e-7)  # the thickness of one sample is rounding alone


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("room", [None, *ROOM.values()], ids=["no capacity", *ROOM])
@pytest.mark.parametrize("scene", RAYS)
def test_few_samples_and_any_room_for_them(scene, room, backend):
    device = "cuda" if backend == "cuda" else "cpu"
    samples = marched(scene, backend, room, device)
    twin = marched(scene, "torch", room, "cpu")
    n = RAYS[scene][2] if room is None else max(0, min(RAYS[scene][2] + room, RAYS[scene][2]))
    assert int(samples.packed_info[:, 1].sum()) == n
    for name in ("packed_info", "ray_indices", "t_starts", "t_ends", "points"):
        assert torch.equal(getattr(samples, name).cpu(), getattr(twin, name)), name
    got, expected = everything(samples, backend, device), everything(twin, "torch", "cpu")
    assert all(close(a, b) for a, b in zip(got, expected, strict=True))
    assert all(bool(of.isfinite().all()) for of in got) and bool(expected[1].any()) == (n > 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scene", RAYS)
def test_room_that_is_left_over_changes_no_pixel(scene, backend):
    device = "cuda" if backend == "cuda" else "cpu"
    exact, roomy = (everything(marched(scene, backend, room, device), backend, device) for room in (None, 5))
    for i, (a, b) in enumerate(zip(roomy, exact, strict=True)):
        assert close(a[: len(b)], b), i  # the weights of the rows that are left over come last, and are zero
