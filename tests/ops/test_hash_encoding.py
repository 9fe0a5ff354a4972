"""Hash encoding: against closed forms, torch = CPU, gradients."""

from __future__ import annotations

import pytest
import torch

from nerf_bridge.errors import UserError
from nerf_bridge.ops.hash_encoding import (
    HashGridSpec,
    hash_encode,
    hash_encode_point_gradient,
    hash_encode_torch,
    level_rows,
)

BOTH = ["torch", pytest.param("cpu", marks=pytest.mark.compiler)]
ALL = [*BOTH, pytest.param("cuda", marks=pytest.mark.cuda)]
MIXED = HashGridSpec(n_levels=4, n_features=4, log2_table_size=10, base_resolution=4, finest_resolution=32)
SMALL = HashGridSpec(n_levels=2, n_features=2, log2_table_size=6, base_resolution=2, finest_resolution=7)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())


def random_points(n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)


def random_table(spec: HashGridSpec, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(spec.n_entries, spec.n_features, generator=torch.Generator().manual_seed(2), dtype=dtype)


def encode_and_grads(points, table, spec, backend):
    points, table = points.clone().requires_grad_(), table.clone().requires_grad_()
    out = hash_encode(points, table, spec, backend)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(out)
    return out.detach(), *torch.autograd.grad((out * weights).sum(), (points, table))


def test_levels_grow_geometrically_and_coarse_ones_are_dense():
    spec = HashGridSpec(n_levels=16, n_features=2, log2_table_size=19, base_resolution=16, finest_resolution=4096)
    assert spec.resolutions[0] == 16 and spec.resolutions[-1] == 4096
    ratios = [b / a for a, b in zip(spec.resolutions, spec.resolutions[1:], strict=False)]
    assert all(abs(ratio - 1.447) < 0.07 for ratio in ratios)
    assert spec.sizes[0] == 4920 and spec.is_dense(0)  # 17^3 = 4913, up to a multiple of 8
    assert spec.sizes[-1] == 2**19 and not spec.is_dense(15)
    assert spec.offsets == (0, *torch.tensor(spec.sizes).cumsum(0).tolist()) and spec.n_entries == sum(spec.sizes)


@pytest.mark.parametrize("backend", BOTH)
def test_a_dense_level_interpolates_a_trilinear_function_exactly(backend):
    spec = HashGridSpec(n_levels=1, n_features=1, log2_table_size=10, base_resolution=8, finest_resolution=8)
    axis = torch.arange(9.0) / 8
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")  # entries run along x first
    table = (1 + 2 * x - 3 * y + 5 * z + x * y * z).reshape(-1, 1)
    table = torch.cat([table, table.new_full((spec.n_entries - len(table), 1), torch.nan)])  # rows that no vertex has
    points = torch.cat([random_points(50), torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.5, 1.0, 0.25]])])
    expected = 1 + points @ torch.tensor([2.0, -3.0, 5.0]) + points.prod(1)
    assert torch.allclose(hash_encode(points, table, spec, backend)[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize("backend", BOTH)
def test_a_hashed_level_reads_the_entry_of_the_published_hash(backend):
    spec = HashGridSpec(n_levels=1, n_features=1, log2_table_size=8, base_resolution=100, finest_resolution=100)
    table = torch.arange(256.0)[:, None]
    vertex = (37, 99, 64)
    expected = (vertex[0] ^ (vertex[1] * 2654435761) % 2**32 ^ (vertex[2] * 805459861) % 2**32) % 256
    got = hash_encode(torch.tensor([vertex]) / 100, table, spec, backend)
    assert abs(float(got) - expected) < 0.05


@pytest.mark.compiler
@pytest.mark.parametrize("n_features", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_cpu_equals_torch_forward_and_backward(n_features, n_threads):
    spec = HashGridSpec(4, n_features, 10, 4, 32)
    points, table = random_points(3000), random_table(spec)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        compiled = encode_and_grads(points, table, spec, "cpu")
    finally:
        torch.set_num_threads(before)
    for got, expected in zip(compiled, encode_and_grads(points, table, spec, "torch"), strict=True):
        assert close(got, expected)


@pytest.mark.compiler
def test_table_gradient_is_the_same_for_any_thread_count_to_the_last_bit():
    points, table = random_points(5000), random_table(MIXED)
    before = torch.get_num_threads()
    grads = []
    try:
        for n_threads in (1, 2, 5):
            torch.set_num_threads(n_threads)
            grads.append(encode_and_grads(points, table, MIXED, "cpu"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in grads[1:] for a, b in zip(grads[0], other, strict=True))


@pytest.mark.compiler
def test_gradcheck_in_float64_first_and_second_order():
    points = random_points(5, torch.float64) * 0.9 + 0.05
    table = random_table(SMALL, torch.float64)
    inputs = (points.requires_grad_(), table.requires_grad_())
    assert torch.autograd.gradcheck(lambda p, t: hash_encode(p, t, SMALL, "cpu"), inputs, eps=1e-7)
    assert torch.autograd.gradgradcheck(lambda p, t: hash_encode(p, t, SMALL, "cpu"), inputs, eps=1e-7, atol=1e-4)


@pytest.mark.compiler
def test_a_loss_on_normals_has_the_gradient_of_the_torch_twin():
    def normal_loss_gradients(backend):
        points, table = random_points(200).requires_grad_(), random_table(MIXED).requires_grad_()
        out = hash_encode(points, table, MIXED, backend).sin().sum()
        (normals,) = torch.autograd.grad(out, points, create_graph=True)
        return torch.autograd.grad((normals**3).sum(), (points, table))

    for got, expected in zip(normal_loss_gradients("cpu"), normal_loss_gradients("torch"), strict=True):
        assert close(got, expected, 2e-5)


@pytest.mark.parametrize("backend", BOTH)
def test_point_gradient_is_that_of_autograd_and_can_be_differentiated(backend):
    points, table = random_points(100), random_table(MIXED).requires_grad_()
    grad_features = torch.randn(100, 16, generator=torch.Generator().manual_seed(4), requires_grad=True)
    place = points.clone().requires_grad_()
    (expected,) = torch.autograd.grad(hash_encode_torch(place, table, MIXED), place, grad_features, create_graph=True)
    got = hash_encode_point_gradient(points, table, grad_features, MIXED, backend)
    assert close(got, expected)
    second = [torch.autograd.grad((normals**2).sum(), (table, grad_features)) for normals in (got, expected)]
    assert all(close(a, b, 2e-5) for a, b in zip(*second, strict=True))
    with torch.no_grad():
        assert not hash_encode_point_gradient(points, table, grad_features, MIXED, backend).requires_grad


@pytest.mark.compiler
def test_views_that_are_strided_or_begin_between_16_bytes_are_read_right():
    store = torch.randn(MIXED.n_entries * 4 + 1, generator=torch.Generator().manual_seed(2))
    table, points = store[1:].view(-1, 4), random_points(60)[::2]
    assert close(hash_encode(points, table, MIXED, "cpu"), hash_encode_torch(points, table, MIXED))


@pytest.mark.parametrize("backend", BOTH)
def test_points_outside_are_clamped_and_have_no_gradient_there(backend):
    outside = torch.tensor([[1.5, 0.3, -0.2]])
    table = random_table(MIXED)
    inside = torch.tensor([[1.0, 0.3, 0.0]])
    assert torch.allclose(
        hash_encode(outside[:1], table, MIXED, backend), hash_encode(inside, table, MIXED, backend), atol=1e-6
    )
    _, grad_points, _ = encode_and_grads(outside, table, MIXED, backend)
    assert grad_points[0, 0] == 0 and grad_points[0, 2] == 0 and grad_points[0, 1] != 0


@pytest.mark.parametrize("backend", ALL)
def test_what_is_no_number_counts_as_0_outside_the_cube(backend):
    """The same on every backend, in both orders: no gradient along that axis, nor anything broken in the table's."""
    device = "cuda" if backend == "cuda" else "cpu"
    nan, infinity, table = float("nan"), float("inf"), random_table(MIXED)
    broken = torch.tensor([[nan, 0.3, 0.6], [0.2, nan, nan], [infinity, -infinity, 0.1]])
    meant = torch.tensor([[0.0, 0.3, 0.6], [0.2, 0.0, 0.0], [1.0, 0.0, 0.1]])
    out, grad_points, grad_table = encode_and_grads(broken.to(device), table.to(device), MIXED, backend)
    expected, whole, over_table = encode_and_grads(meant, table, MIXED, "torch")
    along = (broken == meant).float()
    for got, want in ((out, expected), (grad_points, whole * along), (grad_table, over_table)):
        assert close(got.cpu(), want)
    second = [table_gradient_of_normals(at, table, backend, device) for at in (broken, meant)]
    assert bool(second[0].isfinite().all()) and not close(*second)  # the clamped axes are missing in the first one
    assert close(second[0], table_gradient_of_normals(broken, table, "torch", "cpu"))


def table_gradient_of_normals(points, table, backend, device):
    leaf = table.to(device).requires_grad_()
    over = torch.ones(len(points), 16, device=device)
    normals = hash_encode_point_gradient(points.to(device), leaf, over, MIXED, backend)
    return torch.autograd.grad((normals**2).sum(), leaf)[0].cpu()


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("n", [0, 1])
def test_no_points_and_one_point(backend, n):
    out, grad_points, grad_table = encode_and_grads(random_points(n), random_table(MIXED), MIXED, backend)
    assert out.shape == (n, 16) and grad_points.shape == (n, 3)
    assert (grad_table.abs().sum() > 0) == (n > 0)


def test_a_grid_that_is_new_to_the_gpu_is_refused_while_a_graph_is_recorded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="must be on the GPU before a CUDA graph is recorded; call .* once before"):
        level_rows(HashGridSpec(3, 1, 9, 2, 17), torch.device("cuda", 0))
    assert level_rows(MIXED, torch.device("cpu")).shape == (4, 4)


def test_the_rows_of_a_grid_stay_where_a_graph_knows_them():
    rows, cpu = level_rows(MIXED, torch.device("cpu")), torch.device("cpu")
    for resolution in range(2, 70):
        level_rows(HashGridSpec(1, 1, 8, 2, resolution), cpu)
    assert level_rows(MIXED, cpu) is rows


def test_wrong_arguments_are_named():
    points, table = random_points(4), random_table(MIXED)
    with pytest.raises(ValueError, match=r"points: expected shape \[any, 3\], got \[4, 2\]"):
        hash_encode(points[:, :2], table, MIXED, "torch")
    with pytest.raises(ValueError, match="table: expected shape"):
        hash_encode(points, table[1:], MIXED, "torch")
    with pytest.raises(ValueError, match="table: expected dtype torch.float32, got torch.float64"):
        hash_encode(points, table.double(), MIXED, "torch")
    with pytest.raises(ValueError, match="points: the backend cuda expects tensors on cuda, got cpu"):
        hash_encode(points, table, MIXED, "cuda")
    with pytest.raises(ValueError, match=r"backend: expected cuda, cpu or torch \(resolved\), got 'auto'"):
        hash_encode(points, table, MIXED, "auto")
    with pytest.raises(UserError, match="finest_resolution: expected 8 to 65536, got 4"):
        HashGridSpec(2, 2, 10, 8, 4)


def test_the_twin_takes_a_view_and_leaves_its_inputs_alone():
    points = random_points(10)
    before = points.clone()
    hash_encode_torch(points[::2], random_table(MIXED), MIXED)
    assert torch.equal(points, before)
