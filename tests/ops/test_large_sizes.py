"""Sizes past 2^31: the kernels count in 64 bits, or the sizes are refused.

On the CPU the huge table is a file full of holes that is mapped, so that only the rows that are read take memory.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nerf_bridge.errors import UserError
from nerf_bridge.ops.composite import composite
from nerf_bridge.ops.field_composite import DensityActivation, field_composite
from nerf_bridge.ops.grid_mlp import grid_mlp
from nerf_bridge.ops.hash_encoding import HashGridSpec, hash_encode, hash_encode_torch, level_rows
from nerf_bridge.ops.march import Samples, march_rays

PAST = 1 << 31
HUGE = HashGridSpec(n_levels=9, n_features=1, log2_table_size=28, base_resolution=700, finest_resolution=65536)
BIG = HashGridSpec(n_levels=16, n_features=2, log2_table_size=14, base_resolution=8, finest_resolution=512)


def test_entries_past_2_31_are_counted_in_64_bits():
    assert HUGE.n_entries == 9 << 28 and HUGE.n_entries > PAST
    rows = level_rows(HUGE, torch.device("cpu"))
    assert rows.dtype == torch.int64 and rows[-1].tolist() == [65536, 8 << 28, 1 << 28, 0]
    most = HashGridSpec(64, 8, 28, 65536, 65536)
    assert level_rows(most, torch.device("cpu"))[-1, 1] == 63 << 28


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        ((2, 2, 29, 16, 32), "log2_table_size"),
        ((2, 2, 19, 16, 65537), "finest_resolution"),
        ((65, 2, 19, 16, 32), "n_levels"),
    ],
)
def test_grids_that_32_bits_of_an_entry_cannot_hold_are_refused(sizes, name):
    with pytest.raises(UserError, match=f"hash grid: {name}: expected"):
        HashGridSpec(*sizes)


def test_steps_that_a_float_cannot_count_are_refused():
    rays = torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match="cuts the box's diagonal into more than"):
        march_rays(*rays, torch.ones(2, 2, 2, dtype=torch.bool), 1e-7, None, "torch")


@pytest.mark.compiler
def test_a_table_of_more_than_2_31_entries_is_read_where_it_should_be(tmp_path: Path):
    path = str(tmp_path / "table")
    table = torch.from_file(path, shared=True, size=HUGE.n_entries, dtype=torch.float32).view(-1, 1)
    points = torch.tensor([[0.3, 0.6, 0.9], [0.999, 0.001, 0.5]])
    with torch.no_grad():
        table[_touched(points)] = torch.randn(len(_touched(points)), 1, generator=torch.Generator().manual_seed(0))
        got, expected = hash_encode(points, table, HUGE, "cpu"), hash_encode_torch(points, table, HUGE)
    assert (expected[:, -1].abs() > 1e-3).all() and torch.allclose(got, expected, atol=1e-5)
    Path(path).unlink()


@pytest.mark.cuda
@pytest.mark.large_gpu
def test_a_table_of_more_than_2_31_entries_on_the_gpu():
    points = torch.rand(1000, 3, device="cuda")
    table = torch.randn(HUGE.n_entries, 1, device="cuda", requires_grad=True)
    got, expected = hash_encode(points, table, HUGE, "cuda"), hash_encode_torch(points, table, HUGE)
    assert (got - expected).abs().max() <= 1e-3 * expected.abs().max()
    (grad,) = torch.autograd.grad(got.sum(), table)
    assert float(grad.sum(dtype=torch.float64)) == pytest.approx(9 * 1000, rel=1e-4)
    assert float(grad[PAST:].sum(dtype=torch.float64)) == pytest.approx(1000, rel=1e-4)  # the last level alone


@pytest.mark.cuda
@pytest.mark.large_gpu
def test_more_than_2_31_features_on_the_gpu():
    n = PAST // (BIG.n_levels * BIG.n_features) + 1000
    points, last = torch.rand(n, 3, device="cuda"), slice(n - 500, n)
    shapes = ((BIG.n_entries, 2), (16, 32), (16,), (4, 16), (4,))
    parameters = [torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes]
    with torch.no_grad():
        features = hash_encode(points, parameters[0], BIG, "cuda")
        assert torch.equal(features[last], hash_encode(points[last].clone(), parameters[0], BIG, "cuda"))
    del features
    results = []
    weight = torch.zeros(n, 4, device="cuda")
    weight[last] = torch.randn(500, 4, device="cuda")
    for place, over in ((points, weight), (points[last].clone(), weight[last].clone())):
        out = grid_mlp(place, *parameters, BIG)
        results.append([out[-500:].detach(), *torch.autograd.grad(out, parameters, over)])
    for got, expected in zip(*results, strict=True):
        assert (got - expected).abs().max() <= 1e-3 * expected.abs().max()


@pytest.mark.cuda
@pytest.mark.large_gpu
def test_more_than_2_31_samples_on_the_gpu():
    n_rays = PAST // 1000 + 1000
    rays_o = torch.tensor([[-2.0, 0.1, 0.2]], device="cuda").expand(n_rays, 3)
    rays_d = torch.tensor([[1.0, 0.0, 0.0]], device="cuda").expand(n_rays, 3)
    cells = torch.ones(8, 8, 8, dtype=torch.bool, device="cuda")
    samples = march_rays(rays_o, rays_d, cells, 2.0 / 1010, None, "cuda")
    one = march_rays(rays_o[:1], rays_d[:1], cells, 2.0 / 1010, None, "cuda")
    assert samples.n == n_rays * one.n > PAST and int(samples.ray_indices[-1]) == n_rays - 1
    assert torch.equal(samples.t_starts[-one.n :], one.t_starts)
    starts, ends, info = samples.t_starts, samples.t_ends, samples.packed_info
    del samples
    sigmas = torch.full_like(starts, 0.5)
    out, opacity, _, _ = composite(sigmas, sigmas[:, None], starts, ends, info, "cuda")
    expected = composite(sigmas[: one.n], sigmas[: one.n, None], one.t_starts, one.t_ends, one.packed_info, "cuda")
    assert torch.equal(out[-1], expected[0][0]) and torch.equal(opacity[-1], expected[1][0])


ALONG = 1000  # samples of each of these rays
MANY = PAST // ALONG + 1000


def rays_past_2_31(device: str, n_rays: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """t_starts, t_ends [n] and packed_info [n_rays, 2] of rays with ALONG samples each."""
    t_starts = (torch.arange(ALONG, device=device) * 0.002 + 1.0).repeat(n_rays)
    first = torch.arange(n_rays, device=device) * ALONG
    return t_starts, t_starts + 0.002, torch.stack([first, torch.full_like(first, ALONG)], dim=1)


def row_by_row(last: torch.Tensor, n_rays: int) -> torch.Tensor:
    """[n_rays * ALONG, ...] with the rows `last` [ALONG, ...] for the last ray, half of them for all others."""
    rows = (0.5 * last).repeat(n_rays, *[1] * (last.dim() - 1))
    rows[-ALONG:] = last
    return rows


def composite_there_and_back(device: str, n_rays: int) -> list[torch.Tensor]:
    """Pixels and gradients of the last ray. It takes 56 GiB at 2^31 samples."""
    drawn = torch.rand(ALONG, generator=torch.Generator().manual_seed(0)).to(device)
    sigmas, features = (row_by_row(of, n_rays).requires_grad_() for of in (drawn, drawn[:, None] - 0.3))
    out, opacity, depth, _ = composite(sigmas, features, *rays_past_2_31(device, n_rays), device)
    over = (out[:, 0], opacity, depth)
    grads = torch.autograd.grad(over, (sigmas, features), [torch.full_like(of, 0.5) for of in over])
    return [*(of[-1].detach() for of in over), *(grad[-ALONG:].clone() for grad in grads)]


def field_composite_there_and_back(device: str, n_rays: int) -> list[torch.Tensor]:
    """Pixels and gradients of the last ray. It takes 112 GiB at 2^31 samples, of which the numbers of raw are 32."""
    drawn = torch.randn(ALONG, 4, generator=torch.Generator().manual_seed(0)).to(device)
    raw = row_by_row(drawn, n_rays).requires_grad_()
    t_starts, t_ends, packed_info = rays_past_2_31(device, n_rays)
    points = row_by_row(0.3 * drawn[:, :3], n_rays)
    samples = Samples(packed_info, packed_info.new_empty(0), t_starts, t_ends, points)
    behind = torch.full((n_rays, 3), 0.2, device=device)
    middles = torch.full((n_rays,), 2.0, device=device)
    pixels = field_composite(raw, samples, middles, behind, DensityActivation("softplus", 1.0, 0.8), device)
    (grad,) = torch.autograd.grad(pixels, raw, [torch.full_like(of, 0.5) for of in pixels])
    return [*(of[-1].detach() for of in pixels), grad[-ALONG:].clone()]


@pytest.mark.parametrize("there_and_back", [composite_there_and_back, field_composite_there_and_back])
@pytest.mark.parametrize(
    ("device", "n_rays"),
    [
        pytest.param("cpu", 3, marks=pytest.mark.compiler),
        pytest.param("cuda", MANY, marks=[pytest.mark.cuda, pytest.mark.large_gpu]),
    ],
)
def test_more_than_2_31_samples_are_composited_there_and_back(there_and_back, device, n_rays):
    """The last ray of very many, unlike all others, as when it is alone."""
    assert device == "cpu" or n_rays * ALONG > PAST
    many, alone = there_and_back(device, n_rays), there_and_back(device, 1)
    assert all(torch.equal(got, expected) and bool(expected.any()) for got, expected in zip(many, alone, strict=True))


def _touched(points: torch.Tensor) -> torch.Tensor:
    """The table rows that the points read."""
    rows = []
    for level, resolution in enumerate(HUGE.resolutions):
        low = (points * resolution).long().clamp(0, resolution - 1)
        for corner in range(8):
            x, y, z = (low + torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2])).unbind(1)
            hashed = (x ^ y * 2654435761 ^ z * 805459861) & (HUGE.sizes[level] - 1)
            rows.append(HUGE.offsets[level] + hashed)
    return torch.cat(rows).unique()
