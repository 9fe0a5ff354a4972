"""The half-precision grid and network against float64, forward and backward."""

from __future__ import annotations

import pytest
import torch

from nerf_bridge.ops import grid_mlp as module
from nerf_bridge.ops.grid_mlp import BLOCKS_PER_PROCESSOR, TILE_ROWS, can_run, grid_mlp
from nerf_bridge.ops.hash_encoding import HashGridSpec, hash_encode_torch

pytestmark = [pytest.mark.cuda]
SIZES = [
    (16, 2, 64, 4),
    (6, 4, 32, 4),
    (8, 2, 16, 1),
    (8, 8, 128, 8),
    (3, 2, 64, 3),
]  # levels, features, width, outputs
EVERY_WIDTH = SIZES[:4]
BLOCKS_THAT_FIT = 16  # of the network's kernels, at most, on one multiprocessor: 64 warps, 4 of them a block


def spec_of(n_levels: int, n_features: int) -> HashGridSpec:
    return HashGridSpec(n_levels, n_features, 14, 4, 256)


def parameters(spec: HashGridSpec, width: int, n_outputs: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    n_inputs = spec.n_levels * spec.n_features
    shapes = [(spec.n_entries, spec.n_features), (width, n_inputs), (width,), (n_outputs, width), (n_outputs,)]
    scales = [0.5, (6 / n_inputs) ** 0.5, 0.1, width**-0.5, 0.1]
    drawn = [torch.randn(shape, generator=generator) * scale for shape, scale in zip(shapes, scales, strict=True)]
    return [tensor.cuda().requires_grad_() for tensor in drawn]


def ray_points(n: int) -> torch.Tensor:
    """Points along rays, so that neighbours share cells."""
    generator = torch.Generator().manual_seed(1)
    starts, ends = torch.rand(2, -(-n // 50), 1, 3, generator=generator)
    return (starts + (ends - starts) * torch.linspace(0, 1, 50)[:, None]).reshape(-1, 3)[:n].contiguous().cuda()


def stored(exact: torch.Tensor) -> torch.Tensor:
    """What a half keeps of `exact`; gradients pass as they are."""
    return exact + (exact.detach().half().double() - exact.detach())


def reference(points: torch.Tensor, inputs: list[torch.Tensor], spec: HashGridSpec) -> torch.Tensor:
    """In float64, on what the kernels store in halves: then no unit of the hidden layer is on here and off there."""
    table, hidden_weight, hidden_bias, out_weight, out_bias = inputs
    features = stored(hash_encode_torch(points.double(), stored(table), spec))
    hidden = (features @ stored(hidden_weight).T + hidden_bias).relu()
    return stored(hidden) @ stored(out_weight).T + out_bias


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.detach().double() - expected.detach()).abs().max() / expected.detach().abs().max())


def outputs_and_gradients(sizes, n, order, decided):
    """(ours, float64) for the outputs and every gradient; `decided`: biases that leave no hidden unit near its bend."""
    n_levels, n_features, width, n_outputs = sizes
    spec = spec_of(n_levels, n_features)
    drawn = torch.rand(n, 3, generator=torch.Generator().manual_seed(3)).cuda()
    points = drawn if order == "random" else ray_points(n)
    points = (points * 4096).round() / 4096  # so that float32 places them in their cells exactly
    inputs = parameters(spec, width, n_outputs)
    if decided:
        with torch.no_grad():
            inputs[2].copy_(torch.where(torch.arange(width, device="cuda") % 3 == 0, -20.0, 20.0))
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    drawn = torch.rand(n, n_outputs, generator=torch.Generator().manual_seed(2)).cuda()
    grad_out = (0.5 + drawn) * 1e-6  # halves alone would lose these; of one sign, so that no sum cancels
    out, expected = grid_mlp(points, *inputs, spec), reference(points, exact, spec)
    out.backward(grad_out)
    expected.backward(grad_out.double())
    return [(out, expected), *((got.grad, want.grad) for got, want in zip(inputs, exact, strict=True))]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("n", [1, 127, 20000])
@pytest.mark.parametrize("order", ["random", "rays"])
def test_outputs_and_gradients_are_those_of_float64_to_a_thousandth(sizes, n, order):
    for got, expected in outputs_and_gradients(sizes, n, order, decided=True):
        assert error(got, expected) < 1e-3, tuple(got.shape)


@pytest.mark.parametrize("sizes", SIZES)
def test_units_that_are_just_on_or_off_change_few_gradients(sizes):
    """A unit whose input is zero but for rounding may be on here and off there; that moves single entries, slightly."""
    for got, expected in outputs_and_gradients(sizes, 20000, "random", decided=False):
        off = (got.detach().double() - expected.detach()).abs() / expected.detach().abs().max()
        assert float(off.max()) < 0.05 and float(off.mean()) < 1e-4


def test_no_points_give_no_outputs_and_zero_gradients():
    spec = spec_of(6, 4)
    inputs = parameters(spec, 32, 4)
    out = grid_mlp(torch.empty(0, 3, device="cuda"), *inputs, spec)
    out.sum().backward()
    assert out.shape == (0, 4) and all(float(tensor.grad.abs().sum()) == 0 for tensor in inputs)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_zero_and_broken_gradients_stay_what_they_are(value):
    spec = spec_of(6, 4)
    inputs = parameters(spec, 32, 4)
    grid_mlp(torch.rand(100, 3, device="cuda"), *inputs, spec).backward(torch.full((100, 4), value, device="cuda"))
    grads = torch.cat([tensor.grad.reshape(-1) for tensor in inputs])
    assert bool((grads == 0).all()) if value == 0 else not bool(torch.isfinite(grads).all())


def test_the_weights_gradients_repeat_to_the_last_bit():
    spec = spec_of(16, 2)
    results = []
    for _ in range(2):
        inputs = parameters(spec, 64, 4)
        grid_mlp(ray_points(50000), *inputs, spec).sin().sum().backward()
        results.append([tensor.grad for tensor in inputs[1:]])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def gradients(points, inputs, spec, grad_out, packed_info=None, centred=False):
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = grid_mlp(points, *leaves, spec, packed_info, centred)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_out)]


def lit(n: int, pattern: str) -> torch.Tensor:
    """Which of n rows have a gradient, bool [n]."""
    row, drawn = torch.arange(n), torch.rand(n, generator=torch.Generator().manual_seed(7))
    patterns = {
        "none": row < 0,
        "the last": row == n - 1,
        "whole tiles": row // 128 % 3 == 1,
        "whole warps": row // 32 % 2 == 0,
        "fronts of rays": row % 63 < 33,
        "few": drawn < 0.01,
        "most": drawn < 0.9,
        "one warp in each 64": row // 32 % 64 == 5,
    }
    return patterns[pattern].cuda()


@pytest.mark.parametrize(
    "pattern",
    ["none", "the last", "whole tiles", "whole warps", "fronts of rays", "few", "most", "one warp in each 64"],
)
@pytest.mark.parametrize("n", [1, 31, 33, 128, 129, 20000, 300001])
@pytest.mark.parametrize("sizes", [SIZES[0], SIZES[3]])
def test_rows_without_a_gradient_add_nothing(pattern, n, sizes):
    """The same as those rows left out altogether, wherever they lie in warps and tiles."""
    n_levels, n_features, width, n_outputs = sizes
    spec, where = spec_of(n_levels, n_features), lit(n, pattern)
    inputs, points = parameters(spec, width, n_outputs), ray_points(n)
    grad_out = torch.randn(n, n_outputs, generator=torch.Generator().manual_seed(2)).cuda() * where[:, None]
    kept = where.nonzero()[:, 0]
    got = gradients(points, inputs, spec, grad_out)[1:]
    expected = gradients(points[kept], inputs, spec, grad_out[kept])[1:]
    for one, other in zip(got, expected, strict=True):
        assert float((one - other).abs().max()) <= 1e-4 * float(other.abs().max())
    if pattern == "none":
        assert all(float(one.abs().sum()) == 0 for one in got)


@pytest.mark.parametrize("pattern", ["most", "whole warps"])  # of the second, every other warp has no rows at all
@pytest.mark.parametrize("sizes", EVERY_WIDTH)
def test_several_tiles_of_one_block_add_up_as_those_of_several_blocks(sizes, pattern, monkeypatch):
    """Backward, as on a GPU of one multiprocessor: 4 tiles a block, of few enough points for compute-sanitizer."""
    n_levels, n_features, width, n_outputs = sizes
    n, spec = 2000, spec_of(n_levels, n_features)
    inputs, points = parameters(spec, width, n_outputs), ray_points(n)
    grad_out = torch.randn(n, n_outputs, generator=torch.Generator().manual_seed(2)).cuda() * lit(n, pattern)[:, None]
    expected = gradients(points, inputs, spec, grad_out)  # of 16 blocks
    of_gpu, run_kernel, blocks = module._gpu(points.device), module.run_kernel, []

    def run(backend: str, name: str, *arguments: object) -> None:
        blocks.extend(arguments[-1:] if name == "mlp_half_bwd" else ())
        run_kernel(backend, name, *arguments)

    monkeypatch.setattr(module, "_gpu", lambda device: (*of_gpu[:2], 1))
    monkeypatch.setattr(module, "run_kernel", run)
    got = gradients(points, inputs, spec, grad_out)
    assert blocks == [BLOCKS_PER_PROCESSOR] and torch.equal(got[0], expected[0])
    for one, other in zip(got[1:], expected[1:], strict=True):
        assert error(one, other) < 1e-4, tuple(one.shape)


@pytest.mark.parametrize("sizes", EVERY_WIDTH)
def test_a_row_has_the_same_outputs_in_every_tile(sizes):
    """Forward: the same points again and again, more than the GPU holds at once, so that blocks take a second tile."""
    n_levels, n_features, width, n_outputs = sizes
    spec, points = spec_of(n_levels, n_features), ray_points(2001)
    inputs = parameters(spec, width, n_outputs)
    at_once = module._gpu(points.device)[2] * BLOCKS_THAT_FIT * TILE_ROWS
    times = 2 + at_once // len(points)
    with torch.no_grad():
        once, out = grid_mlp(points, *inputs, spec), grid_mlp(points.repeat(times, 1), *inputs, spec)
    assert torch.equal(out.view(times, *once.shape), once.expand(times, -1, -1))


def test_one_output_with_a_gradient_lights_its_row():
    """One number of one row, in each column by turns."""
    spec = spec_of(16, 2)
    inputs, points = parameters(spec, 64, 4), ray_points(500)
    for column in range(4):
        grad_out = torch.zeros(500, 4, device="cuda")
        grad_out[321, column] = -1e-9
        table, *_, out_bias = gradients(points, inputs, spec, grad_out)[1:]
        assert float(table.abs().max()) > 0
        assert torch.equal(out_bias, grad_out.sum(0))


def rays_of(counts: list[int]) -> torch.Tensor:
    count = torch.tensor(counts, dtype=torch.int64)
    return torch.stack([count.cumsum(0) - count, count], 1).cuda()


@pytest.mark.parametrize("beyond", [0, 1, 40, 20000])  # rows that no ray names, as a capacity leaves them
@pytest.mark.parametrize(
    "counts",
    [[], [0], [1], [0, 0, 5, 0], [4] * 8, [63, 0, 7, 64, 65, 1, 2, 3, 31], [33] * 700, [1, 0, 0, 0, 0, 0, 0, 0, 900]],
)
@pytest.mark.parametrize("sizes", [SIZES[0], SIZES[3]])
def test_points_taken_ray_by_ray_give_the_same(counts, beyond, sizes):
    n_levels, n_features, width, n_outputs = sizes
    n, spec = sum(counts) + beyond, spec_of(n_levels, n_features)
    inputs, points = parameters(spec, width, n_outputs), ray_points(n)
    grad_out = torch.randn(n, n_outputs, generator=torch.Generator().manual_seed(2)).cuda()
    grad_out *= (torch.arange(n, device="cuda") % 5 < 3)[:, None]
    plain = gradients(points, inputs, spec, grad_out)
    by_rays = gradients(points, inputs, spec, grad_out, rays_of(counts))
    assert torch.equal(by_rays[0], plain[0])
    for one, other in zip(by_rays[2:], plain[2:], strict=True):  # of the network: the same sums in the same order
        assert torch.equal(one, other)
    if n:
        assert error(by_rays[1], plain[1]) < 1e-5


def test_centred_points_are_those_of_the_unit_cube_to_the_last_bit():
    spec = spec_of(16, 2)
    inputs, points = parameters(spec, 64, 4), 2.2 * torch.rand(5000, 3, device="cuda") - 1.1
    centred = grid_mlp(points, *inputs, spec, centred=True)
    assert torch.equal(centred, grid_mlp(0.5 * points + 0.5, *inputs, spec))


def test_atomics_are_refused_where_results_must_repeat():
    spec = spec_of(16, 2)
    inputs, points = parameters(spec, 64, 4), torch.rand(100, 3, device="cuda")
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="float atomics.*use hash_encode and decode"):
            grid_mlp(points, *inputs, spec)
        with torch.no_grad():
            assert bool(torch.isfinite(grid_mlp(points, *inputs, spec)).all())
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("sizes", [(32, 2, 128, 8), (8, 8, 128, 8), (16, 4, 64, 8), (1, 2, 16, 1)])
def test_the_largest_sizes_run_or_are_refused(sizes):
    """A block of 128 hidden units and 64 inputs takes more shared memory than some GPUs have."""
    n_levels, n_features, width, n_outputs = sizes
    spec = spec_of(n_levels, n_features)
    inputs, points = parameters(spec, width, n_outputs), ray_points(1000)
    if can_run(spec, width, n_outputs, "cuda", points.device):
        results = gradients(points, inputs, spec, torch.ones(1000, n_outputs, device="cuda"))
        assert all(bool(torch.isfinite(result).all()) for result in results)
    else:
        with pytest.raises(ValueError, match="no kernel for"):
            grid_mlp(points, *inputs, spec)


@pytest.mark.slow
def test_more_than_2_31_numbers():
    """2^26 points and some have more than 2^31 features; the last ones come out as they do alone."""
    spec, n, few = spec_of(16, 2), (1 << 26) + 300, 400
    inputs = parameters(spec, 64, 4)
    points = torch.rand(n, 3, device="cuda")
    out = grid_mlp(points, *inputs, spec)
    alone = grid_mlp(points[-few:].contiguous(), *inputs, spec)
    assert torch.equal(out[-few:], alone)
    grad_out = torch.zeros_like(out)
    grad_out[-few:] = torch.randn(few, 4, device="cuda")
    grads = torch.autograd.grad(out, inputs, grad_out)
    expected = torch.autograd.grad(alone, inputs, grad_out[-few:].contiguous())
    assert all(error(got, want) < 1e-5 for got, want in zip(grads, expected, strict=True))
