"""Every operation on a GPU that is not the current one, and on a stream that is not the default one, there and back.

What goes to the wrong stream starts too early: the numbers arrive only after the stream has been kept busy for a while.
What goes to the wrong GPU fails or leaves its results unwritten.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from nerf_bridge.config import FieldConfig
from nerf_bridge.ops.composite import composite
from nerf_bridge.ops.decoder import decode
from nerf_bridge.ops.field_composite import DensityActivation, field_composite
from nerf_bridge.ops.grid_mlp import grid_mlp
from nerf_bridge.ops.hash_encoding import HashGridSpec, hash_encode
from nerf_bridge.ops.march import Samples, march_rays
from nerf_bridge.render import render
from nerf_bridge.scene.cameras import Cameras, turntable_cameras
from nerf_bridge.scene.field import HashGridField

pytestmark = pytest.mark.cuda
SPEC = HashGridSpec(n_levels=6, n_features=2, log2_table_size=12, base_resolution=4, finest_resolution=64)
SHAPES = [(SPEC.n_entries, 2), (32, 12), (32,), (4, 32), (4,)]
FIELD = FieldConfig(
    n_levels=6, n_features=2, log2_table_size=12, base_resolution=4, finest_resolution=64, hidden_width=32
)
CAPACITY = 60_000
STEP = 0.03
CYCLES = 100_000_000  # for which a stream is kept busy: about a twentieth of a second


@dataclass(frozen=True)
class Work:
    """Makes tensors on the CPU; does the work on the device where they then are, and gives results and gradients."""

    inputs: Callable[[], list[Tensor]]
    run: Callable[..., list[Tensor]]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def leaves_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in tensors]


def with_gradients(outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    weights = [torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape) for out in outputs]
    loss = sum((weight * out).sum() for weight, out in zip(weights, outputs, strict=True))
    return [*(out.detach() for out in outputs), *torch.autograd.grad(loss, leaves)]


def scene() -> list[Tensor]:
    rays_o = torch.nn.functional.normalize(drawn(2000, 3), dim=1) * 3
    rays_d = torch.nn.functional.normalize(drawn(2000, 3, seed=1).clamp(-1, 1) - rays_o, dim=1)
    return [rays_o, rays_d, drawn(16, 16, 16) > 0.3, drawn(2000).sigmoid()]


def march(rays_o: Tensor, rays_d: Tensor, occupied: Tensor, jitter: Tensor) -> list[Tensor]:
    samples = march_rays(rays_o, rays_d, occupied, STEP, jitter, rays_o.device.type, CAPACITY)
    return [getattr(samples, name) for name in ("packed_info", "ray_indices", "t_starts", "t_ends", "points")]


def samples_and(*columns: int) -> list[Tensor]:
    """Samples, and random numbers [n, c] for each of them."""
    packed_info, ray_indices, t_starts, t_ends, points = march(*scene())
    return [packed_info, ray_indices, t_starts, t_ends, points, *(drawn(CAPACITY, count) for count in columns)]


def composite_work(packed_info: Tensor, _: Tensor, t_starts: Tensor, t_ends: Tensor, points: Tensor, *of: Tensor):
    sigmas, features = leaves_of((of[0][:, 0].exp(), of[1]))
    return with_gradients(
        composite(sigmas, features, t_starts, t_ends, packed_info, points.device.type), (sigmas, features)
    )


def field_composite_work(*given: Tensor) -> list[Tensor]:
    samples, (raw,) = Samples(*given[:5]), leaves_of(given[5:])
    n_rays = len(samples.packed_info)
    behind = raw.new_full((n_rays, 3), 0.3).requires_grad_()
    activation = DensityActivation("trunc_exp", 2.0, 0.8)
    pixels = field_composite(raw, samples, raw.new_full((n_rays,), 3.0), behind, activation, raw.device.type)
    return with_gradients(pixels, (raw, behind))


def encoding_work(points: Tensor, table: Tensor) -> list[Tensor]:
    """In both orders."""
    points, table = leaves_of((points, table))
    out = hash_encode(points, table, SPEC, points.device.type)
    first = torch.autograd.grad(out.sin().sum(), (points, table), create_graph=True)
    return [out.detach(), *with_gradients(first, (points, table))]


def grid_mlp_work(points: Tensor, packed_info: Tensor, *parameters: Tensor) -> list[Tensor]:
    leaves = leaves_of(parameters)
    return with_gradients([grid_mlp(points, *leaves, SPEC, packed_info)], leaves)


def decode_work(*given: Tensor) -> list[Tensor]:
    leaves = leaves_of(given)
    return with_gradients([decode(*leaves, given[0].device.type)], leaves)


@functools.cache  # so that nothing is copied to the device later on, for which the host would wait
def field_on(precision: str, device: torch.device) -> HashGridField:
    settings = FIELD.model_copy(update={"precision": precision})
    return HashGridField(settings, seed=0, backend=device.type).to(device)


@functools.cache
def cameras_on(device: torch.device) -> Cameras:
    return turntable_cameras(2, 0.3, 2.5, math.radians(40)).to(device)


def render_work(precision: str) -> Callable[..., list[Tensor]]:
    def run(occupied: Tensor, background: Tensor, *parameters: Tensor) -> list[Tensor]:
        device = occupied.device
        field, cameras = field_on(precision, device), cameras_on(device)
        for own, given in zip(field.parameters(), parameters, strict=True):
            own.data = given
        (behind,) = leaves_of((background,))
        views = (field, occupied, cameras, 24, behind, STEP, device.type)
        picture = render(*views, capacity=CAPACITY)
        outputs = (picture.color, picture.opacity, picture.depth, picture.thickness)
        return with_gradients(outputs, (behind, *field.parameters()))

    return run


def network() -> list[Tensor]:
    return [0.4 * drawn(*shape, seed=i) for i, shape in enumerate(SHAPES)]


def points_of_rays() -> list[Tensor]:
    packed_info, *_, points = march(*scene())
    return [points * 0.5 + 0.5, packed_info]


def pictures() -> list[Tensor]:
    return [scene()[2], drawn(2, 3).sigmoid(), *network()]


WORK = {
    "march": Work(scene, march),
    "composite": Work(lambda: samples_and(1, 3), composite_work),
    "field_composite": Work(lambda: samples_and(4), field_composite_work),
    "hash_encode": Work(lambda: [drawn(20_000, 3).sigmoid(), network()[0]], encoding_work),
    "grid_mlp": Work(lambda: [*points_of_rays(), *network()], grid_mlp_work),
    "decode": Work(lambda: [drawn(20_000, 12), *network()[1:]], decode_work),
    "render": Work(pictures, render_work("auto")),
    "render in float32": Work(pictures, render_work("float32")),
}


def done_on(device: torch.device, name: str) -> list[Tensor]:
    """The work, with all that it needs on `device` beforehand."""
    results = WORK[name].run(*(tensor.to(device) for tensor in WORK[name].inputs()))
    torch.cuda.synchronize(device)
    return results


def done_late_on(device: torch.device, name: str) -> list[Tensor]:
    """The same on the current stream of `device`, where the numbers arrive after a while."""
    done_on(device, name)  # libraries are loaded, and what lies ready on the device is copied there
    ready = [tensor.to(device) for tensor in WORK[name].inputs()]
    given = [torch.zeros_like(tensor) for tensor in ready]
    torch.cuda.synchronize(device)
    with torch.cuda.device(device):
        torch.cuda._sleep(CYCLES)
    for late, tensor in zip(given, ready, strict=True):
        late.copy_(tensor)
    results = WORK[name].run(*given)
    torch.cuda.synchronize(device)
    return results


def assert_same(got: list[Tensor], expected: list[Tensor], name: str) -> None:
    for i, (one, other) in enumerate(zip(got, expected, strict=True)):
        a, b = one.cpu(), other.cpu()
        if name == "march":
            assert torch.equal(a, b), i
        else:
            assert float(b.abs().max()) > 0 and bool((a - b).abs().max() <= 1e-4 * b.abs().max()), i


@pytest.mark.parametrize("name", WORK)
def test_a_stream_that_is_not_the_default_one(name):
    device = torch.device("cuda", torch.cuda.current_device())
    expected = done_on(device, name)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        got = done_late_on(device, name)
    assert_same(got, expected, name)


@pytest.mark.multi_gpu
@pytest.mark.parametrize("name", WORK)
def test_a_gpu_that_is_not_the_current_one(name):
    current, other = torch.device("cuda", 0), torch.device("cuda", 1)
    with torch.cuda.device(current):
        expected, got = done_on(current, name), done_on(other, name)
        assert torch.cuda.current_device() == 0 and all(result.device == other for result in got)
    assert_same(got, expected, name)


@pytest.mark.multi_gpu
@pytest.mark.parametrize("name", WORK)
def test_a_stream_of_a_gpu_that_is_not_the_current_one(name):
    current, other = torch.device("cuda", 0), torch.device("cuda", 1)
    expected = done_on(current, name)
    with torch.cuda.stream(torch.cuda.Stream(other)), torch.cuda.device(current):
        got = done_late_on(other, name)
        assert torch.cuda.current_device() == 0
    assert_same(got, expected, name)
