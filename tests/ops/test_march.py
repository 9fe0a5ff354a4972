"""Ray marching: against a plain loop, torch = CPU, edge cases, properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nerf_bridge.ops import march
from nerf_bridge.ops.march import Samples, intersect_box_torch, march_rays

BOTH = ["torch", pytest.param("cpu", marks=pytest.mark.compiler)]
STEP = 0.05


def random_rays(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rays_o = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator, dtype=dtype), dim=1) * 3
    target = torch.rand(n, 3, generator=generator, dtype=dtype) * 2.4 - 1.2
    return rays_o, torch.nn.functional.normalize(target - rays_o, dim=1)


def random_occupied(resolution: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(resolution, resolution, resolution, generator=torch.Generator().manual_seed(seed)) < 0.4


def same(a: Samples, b: Samples) -> bool:
    return all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("packed_info", "ray_indices", "t_starts", "t_ends")
    )


def plain_loop(o: list[float], d: list[float], occupied: torch.Tensor, step: float, jitter: float) -> list[float]:
    """The starts of one ray's samples, written down as the definition says."""
    near, far = 0.0, math.inf
    for origin, direction in zip(o, d, strict=True):
        if direction == 0:
            if abs(origin) > 1:
                return []
            continue
        low, high = sorted(((-1 - origin) / direction, (1 - origin) / direction))
        near, far = max(near, low), min(far, high)
    starts, i, r = [], 0, occupied.shape[0]
    while (mid := near + (i + 0.5 + jitter) * step) < far:
        cell = [min(max(int((a + mid * b + 1) / 2 * r), 0), r - 1) for a, b in zip(o, d, strict=True)]
        if occupied[cell[0], cell[1], cell[2]]:
            starts.append(near + (i + jitter) * step)
        i += 1
    return starts


@pytest.mark.parametrize("backend", BOTH)
def test_samples_are_those_of_the_definition(backend):
    rays_o, rays_d = random_rays(40, dtype=torch.float64)
    occupied = random_occupied(7)
    jitter = torch.rand(40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    samples = march_rays(rays_o, rays_d, occupied, STEP, jitter, backend)
    for ray in range(40):
        start, count = samples.packed_info[ray].tolist()
        expected = plain_loop(rays_o[ray].tolist(), rays_d[ray].tolist(), occupied, STEP, float(jitter[ray]))
        got = samples.t_starts[start : start + count]
        assert torch.allclose(got, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
        assert (samples.ray_indices[start : start + count] == ray).all()
    assert torch.allclose(samples.t_ends - samples.t_starts, torch.full_like(samples.t_starts, STEP))
    assert samples.n == samples.packed_info[:, 1].sum() == samples.t_mids.shape[0] > 0


@pytest.mark.compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_jitter", [False, True])
def test_cpu_equals_torch_to_the_last_bit(dtype, with_jitter):
    rays_o, rays_d = random_rays(2000, dtype=dtype)
    jitter = torch.rand(2000, generator=torch.Generator().manual_seed(5), dtype=dtype) if with_jitter else None
    results = [march_rays(rays_o, rays_d, random_occupied(24), 0.03, jitter, backend) for backend in ("cpu", "torch")]
    assert results[0].n > 10000 and same(*results)


@pytest.mark.compiler
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), resolution=st.integers(1, 20), step=st.floats(0.01, 1.5))
def test_every_midpoint_lies_in_an_occupied_cell_of_the_box(seed, resolution, step):
    rays_o, rays_d = random_rays(16, seed)
    occupied = random_occupied(resolution, seed)
    samples = march_rays(rays_o, rays_d, occupied, step, None, "cpu")
    assert same(samples, march_rays(rays_o, rays_d, occupied, step, None, "torch"))
    points = rays_o[samples.ray_indices] + samples.t_mids[:, None] * rays_d[samples.ray_indices]
    assert (points.abs() <= 1 + 1e-5).all()
    cells = ((points + 1) / 2 * resolution).long().clamp(0, resolution - 1)
    assert occupied[cells[:, 0], cells[:, 1], cells[:, 2]].float().mean() > 0.99 if samples.n else True
    assert (samples.packed_info[1:, 0] == samples.packed_info.sum(1)[:-1]).all()


@pytest.mark.parametrize("backend", BOTH)
def test_axis_parallel_rays_inside_outside_and_grazing(backend):
    full = torch.ones(4, 4, 4, dtype=torch.bool)
    rays_o = torch.tensor(
        [[-3.0, 0.0, 0.0], [-3.0, 1.5, 0.0], [0.0, 0.0, 5.0], [-3.0, 1.0, 0.0], [0.2, 0.0, 0.0], [3.0, 0.0, 0.0]]
    )
    rays_d = torch.tensor(
        [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    )
    samples = march_rays(rays_o, rays_d, full, 0.25, None, backend)
    assert samples.packed_info[:, 1].tolist() == [8, 0, 8, 8, 4, 0]
    assert samples.t_starts[:8].tolist() == [2 + 0.25 * i for i in range(8)]
    assert samples.t_starts[-4:].tolist() == [0, 0.25, 0.5, 0.75]  # from inside: starts at the origin


@pytest.mark.parametrize("backend", BOTH)
def test_a_ray_along_an_edge_and_one_through_a_corner_stay_in_bounds(backend):
    full = torch.ones(3, 3, 3, dtype=torch.bool)
    rays_o = torch.tensor([[1.0, 1.0, -4.0], [2.0, -1.0, 2.0], [-3.0, -3.0, -3.0]])
    rays_d = torch.nn.functional.normalize(torch.tensor([[0.0, 0.0, 1.0], [-1.0, 1.0, -1.0], [1.0, 1.0, 1.0]]), dim=1)
    samples = march_rays(rays_o, rays_d, full, 0.1, None, backend)
    assert samples.packed_info[0, 1] == 20 and samples.packed_info[2, 1] in (34, 35)


@pytest.mark.compiler
@pytest.mark.parametrize("length", [0.1, 0.5, 2.0, 1e-20])
def test_directions_of_any_length_make_the_same_samples_on_every_backend(length):
    rays_o, rays_d = random_rays(50)
    everything = torch.ones(4, 4, 4, dtype=torch.bool)
    cpu, twin = (march_rays(rays_o, length * rays_d, everything, STEP, None, backend) for backend in ("cpu", "torch"))
    assert same(cpu, twin)
    assert int(cpu.packed_info[:, 1].max()) <= 2 * math.sqrt(3) / STEP + 2 + 32


@pytest.mark.compiler
@pytest.mark.parametrize("offset", [-1.5, 1.0, 3.25])
def test_an_offset_out_of_its_range_does_the_same_on_every_backend(offset):
    rays = random_rays(50)
    jitter, occupied = torch.full((50,), offset), random_occupied(7)
    assert same(*(march_rays(*rays, occupied, STEP, jitter, backend) for backend in ("cpu", "torch")))


@pytest.mark.parametrize("backend", BOTH)
def test_no_rays_and_nothing_occupied(backend):
    nothing = torch.zeros(4, 4, 4, dtype=torch.bool)
    samples = march_rays(*random_rays(5), nothing, STEP, None, backend)
    assert samples.n == 0 and samples.packed_info.tolist() == [[0, 0]] * 5
    samples = march_rays(torch.empty(0, 3), torch.empty(0, 3), ~nothing, STEP, torch.empty(0), backend)
    assert samples.n == 0 and samples.packed_info.shape == (0, 2)


@pytest.mark.parametrize("backend", BOTH)
def test_the_occupancy_grid_is_indexed_x_y_z(backend):
    occupied = torch.zeros(4, 4, 4, dtype=torch.bool)
    occupied[3, 0, 1] = True  # x in [0.5, 1], y in [-1, -0.5], z in [-0.5, 0]
    samples = march_rays(
        torch.tensor([[0.75, -3.0, -0.25]]), torch.tensor([[0.0, 1.0, 0.0]]), occupied, 0.125, None, backend
    )
    assert samples.t_starts.tolist() == [2.0, 2.125, 2.25, 2.375]


@pytest.mark.parametrize("backend", BOTH)
def test_rays_that_stand_still_or_are_not_numbers_have_no_samples(backend):
    rays_o, rays_d = random_rays(5)
    rays_d[0, 1] = float("nan")
    rays_o[1] = float("inf")
    rays_d[2] = float("nan")
    rays_o[3], rays_d[3] = 0.0, 0.0
    samples = march_rays(rays_o, rays_d, torch.ones(4, 4, 4, dtype=torch.bool), STEP, None, backend)
    assert samples.packed_info[:4, 1].tolist() == [0, 0, 0, 0]


def test_the_box_is_entered_and_left_where_its_planes_are():
    near, far = intersect_box_torch(torch.tensor([[0.0, -4.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]]))
    assert near.item() == 3 and far.item() == 5


def test_wrong_arguments_are_named():
    rays_o, rays_d = random_rays(3)
    full = torch.ones(4, 4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="rays_d: expected shape"):
        march_rays(rays_o, rays_d[:2], full, STEP, None, "torch")
    with pytest.raises(ValueError, match=r"occupied: expected bool \[R, R, R\]"):
        march_rays(rays_o, rays_d, full.float(), STEP, None, "torch")
    with pytest.raises(ValueError, match="step_size: expected a positive length, got 0"):
        march_rays(rays_o, rays_d, full, 0.0, None, "torch")
    with pytest.raises(ValueError, match="jitter: expected shape"):
        march_rays(rays_o, rays_d, full, STEP, torch.zeros(4), "torch")


@pytest.mark.parametrize("backend", BOTH)
def test_a_capacity_keeps_the_first_samples_and_tells_of_the_rest(backend):
    rays_o, rays_d = random_rays(50)
    occupied = random_occupied(12)
    free = march_rays(rays_o, rays_d, occupied, STEP, None, backend)
    roomy = march_rays(rays_o, rays_d, occupied, STEP, None, backend, capacity=free.n + 5)
    assert roomy.n == free.n + 5 and roomy.overflow is not None and not bool(roomy.overflow)
    assert torch.equal(roomy.packed_info, free.packed_info) and torch.equal(roomy.points[: free.n], free.points)
    assert float(roomy.t_ends[free.n :].abs().sum()) == 0
    tight = march_rays(rays_o, rays_d, occupied, STEP, None, backend, capacity=free.n - 7)
    assert tight.overflow is not None and bool(tight.overflow) and int(tight.packed_info[:, 1].sum()) == free.n - 7
    assert torch.equal(tight.t_starts, free.t_starts[: free.n - 7])
    none = march_rays(rays_o, rays_d, occupied, STEP, None, backend, capacity=0)
    assert none.n == 0 and bool(none.overflow) and int(none.packed_info.sum()) == 0


@pytest.mark.parametrize("resolution", [1, 3, 4, 5, 31])
@pytest.mark.compiler
def test_empty_bricks_are_left_without_losing_a_sample(resolution):
    """Few cells are occupied, so that the walk leaves brick after brick behind; steps from coarse to very fine."""
    rays_o, rays_d = random_rays(200, seed=3)
    occupied = torch.rand(resolution, resolution, resolution, generator=torch.Generator().manual_seed(1)) < 0.02
    occupied[0, -1, 0] = True
    for step in (0.3, 0.05, 0.003):
        jitter = torch.rand(200, generator=torch.Generator().manual_seed(2))
        got = march_rays(rays_o, rays_d, occupied, step, jitter, "cpu")
        assert same(got, march_rays(rays_o, rays_d, occupied, step, jitter, "torch"))


@pytest.mark.parametrize("backend", BOTH)
def test_rays_whose_masks_would_not_fit_are_refused(backend, monkeypatch):
    rays_o, rays_d = random_rays(2600)  # of 109 words each
    monkeypatch.setattr(march, "MAX_MASK_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="masks of 2600 rays take .* GiB, more than .*: take longer steps"):
        march_rays(rays_o, rays_d, random_occupied(2), 1e-3, None, backend)
    assert march_rays(rays_o[:20], rays_d[:20], random_occupied(2), 1e-3, None, backend).n > 0


def test_sizes_that_the_walk_cannot_count_are_refused():
    rays_o, rays_d = random_rays(2)
    with pytest.raises(ValueError, match="more than 16777216 steps"):
        march_rays(rays_o, rays_d, random_occupied(2), 1e-7, None, "torch")
    with pytest.raises(ValueError, match="capacity: expected at least 0"):
        march_rays(rays_o, rays_d, random_occupied(2), STEP, None, "torch", capacity=-1)
