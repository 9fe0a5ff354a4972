"""CUDA = CPU, forward and backward, to 1e-4; the march to the last bit."""

from __future__ import annotations

import pytest
import torch

from nerf_bridge.ops.composite import composite
from nerf_bridge.ops.hash_encoding import HashGridSpec, hash_encode
from nerf_bridge.ops.march import Samples, march_rays

pytestmark = [pytest.mark.cuda, pytest.mark.compiler]
SPECS = [HashGridSpec(4, n_features, 12, 4, 64) for n_features in (1, 2, 3, 4, 6, 8)]
DENSITIES = {"opaque": [1e6], "opaque in places": [0.5, 3.0, 20.0, 0.0, 5.0, 1e6, 2.0], "fog": [2.0]}  # in turns


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return a.shape == b.shape and (a.numel() == 0 or bool((a.cpu() - b.cpu()).abs().max() <= tolerance * b.abs().max()))


def encode_and_grads(device: str, spec: HashGridSpec, n: int = 20000) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(n, 3, generator=generator).to(device).requires_grad_()
    table = torch.randn(spec.n_entries, spec.n_features, generator=generator).to(device).requires_grad_()
    out = hash_encode(points, table, spec, device)
    grad_points, grad_table = torch.autograd.grad(out.sin().sum(), (points, table), create_graph=True)
    second = torch.autograd.grad((grad_points**2).sum() + grad_table.sin().sum(), (points, table))
    return [out.detach(), grad_points.detach(), grad_table.detach(), *second]


def scene(device: str, n: int = 5000) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    rays_o = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1) * 3
    target = torch.rand(n, 3, generator=generator) * 2.4 - 1.2
    rays_d = torch.nn.functional.normalize(target - rays_o, dim=1)
    rays_o[:3], rays_d[:3] = torch.tensor([-3.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])
    occupied = torch.rand(24, 24, 24, generator=generator) < 0.4
    jitter = torch.rand(n, generator=generator)
    return tuple(tensor.to(device) for tensor in (rays_o, rays_d, occupied, jitter))


def march(device: str) -> Samples:
    rays_o, rays_d, occupied, jitter = scene(device)
    return march_rays(rays_o, rays_d, occupied, 0.03, jitter, device)


def edge_case_samples(device: str, capacity: int | None, step: float) -> Samples:
    """Of rays that miss, graze a face, run along an axis or an edge, start inside, stand still, are not numbers."""
    far, inside = [-3.0, 0.2, 0.1], [0.1, 0.2, 0.3]
    origins = [far, [-3.0, 1.0, 0.0], [-3.0, 1.0, 1.0], [-3.0, 5.0, 0.0], inside, inside, [float("nan")] * 3, far]
    directions = [
        [1.0, 0, 0],
        [1.0, 0, 0],
        [1.0, 0, 0],
        [1.0, 0, 0],
        [0, 0, -1.0],
        [0.0, 0, 0],
        [1.0, 0, 0],
        [-1.0, 0, 0],
    ]
    occupied = torch.zeros(9, 9, 9, dtype=torch.bool)
    occupied[4:, :, :] = True
    rays = (torch.tensor(origins, device=device), torch.tensor(directions, device=device))
    return march_rays(*rays, occupied.to(device), step, None, device, capacity)


def composite_and_grads(device: str, samples: Samples, sigmas: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Outputs and gradients over sigmas [n] (None: drawn) and four drawn features."""
    generator = torch.Generator().manual_seed(0)
    n = samples.n
    drawn = torch.rand(n, generator=generator) * 20
    sigmas = (drawn if sigmas is None else sigmas).to(device).requires_grad_()
    features = torch.randn(n, 4, generator=generator).to(device).requires_grad_()
    rest = (tensor.to(device) for tensor in (samples.t_starts, samples.t_ends, samples.packed_info))
    outputs = composite(sigmas, features, *rest, device)
    return [
        *(out.detach() for out in outputs),
        *torch.autograd.grad(sum(out.sin().sum() for out in outputs), (sigmas, features)),
    ]


@pytest.mark.parametrize("spec", SPECS)
def test_hash_encoding_cuda_equals_cpu_in_both_orders(spec):
    for got, expected in zip(encode_and_grads("cuda", spec), encode_and_grads("cpu", spec), strict=True):
        assert close(got, expected)


def test_the_deterministic_path_repeats_to_the_last_bit_and_is_as_exact():
    torch.use_deterministic_algorithms(True)
    try:
        first, second = encode_and_grads("cuda", SPECS[3]), encode_and_grads("cuda", SPECS[3])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(close(a, b) for a, b in zip(first, encode_and_grads("cpu", SPECS[3]), strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_the_deterministic_path_keeps_what_is_not_finite_and_zero(value):
    spec = SPECS[1]
    table = torch.zeros(spec.n_entries, spec.n_features, device="cuda", requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        (grad,) = torch.autograd.grad(
            (hash_encode(torch.rand(10, 3, device="cuda"), table, spec, "cuda") * value).sum(), table
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert bool((grad == 0).all()) if value == 0 else not torch.isfinite(grad).all()


def test_march_cuda_equals_cpu_to_the_last_bit():
    got, expected = march("cuda"), march("cpu")
    for name in ("packed_info", "ray_indices", "t_starts", "t_ends", "points"):
        assert torch.equal(getattr(got, name).cpu(), getattr(expected, name)), name


@pytest.mark.parametrize("capacity", [None, 100, 10000])
def test_edge_cases_march_and_composite_as_on_the_cpu(capacity):
    both = []
    for device in ("cuda", "cpu"):
        samples = edge_case_samples(device, capacity, 0.07)
        opaque = torch.full((samples.n,), 1e6, device=device)
        outputs = composite(opaque, samples.points, samples.t_starts, samples.t_ends, samples.packed_info, device)
        both.append([samples.packed_info, samples.t_starts, samples.points, *outputs])
    assert all(close(got, expected, 1e-5) for got, expected in zip(*both, strict=True))


@pytest.mark.parametrize("capacity", [None, 150, 1000])  # just enough, too little, more
@pytest.mark.parametrize("densities", DENSITIES)
def test_edge_cases_have_the_gradients_of_the_cpu(densities, capacity):
    samples = edge_case_samples("cpu", capacity, 0.02)  # more of a ray than a warp's 32
    turns = torch.tensor(DENSITIES[densities])
    sigmas = turns[torch.arange(samples.n) % len(turns)]
    got, expected = (composite_and_grads(device, samples, sigmas) for device in ("cuda", "cpu"))
    for one, other in zip(got, expected, strict=True):
        assert bool(one.isfinite().all()) and close(one, other)


def test_a_march_with_a_capacity_fits_a_cuda_graph():
    rays_o, rays_d, occupied, jitter = scene("cuda")
    march_rays(rays_o, rays_d, occupied, 0.03, jitter, "cuda", 200000)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = march_rays(rays_o, rays_d, occupied, 0.03, jitter, "cuda", 200000)
    occupied.copy_(occupied.roll(1, 0))
    graph.replay()
    expected = march_rays(rays_o, rays_d, occupied, 0.03, jitter, "cuda", 200000)
    for name in ("packed_info", "t_starts", "points", "overflow"):
        assert torch.equal(getattr(held, name), getattr(expected, name)), name


def test_a_grid_that_is_new_to_the_gpu_is_refused_while_a_graph_is_recorded_and_then_fits_one():
    spec = HashGridSpec(5, 2, 11, 5, 77)
    points, table = torch.rand(100, 3, device="cuda"), torch.randn(spec.n_entries, 2, device="cuda")
    hash_encode(points, torch.randn(SPECS[1].n_entries, 2, device="cuda"), SPECS[1], "cuda")  # the kernels are loaded
    with pytest.raises(RuntimeError, match="call the function once before"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        hash_encode(points, table, spec, "cuda")
    expected, graph = hash_encode(points, table, spec, "cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = hash_encode(points, table, spec, "cuda")
    graph.replay()
    assert torch.equal(held, expected)


def test_composite_cuda_equals_cpu():
    samples = march("cpu")
    for got, expected in zip(composite_and_grads("cuda", samples), composite_and_grads("cpu", samples), strict=True):
        assert close(got, expected)


def test_nothing_to_do_launches_nothing():
    spec = SPECS[3]
    assert all(torch.isfinite(result).all() for result in encode_and_grads("cuda", spec, n=0))
    empty, full = torch.empty(0, 3, device="cuda"), torch.ones(4, 4, 4, dtype=torch.bool, device="cuda")
    samples = march_rays(empty, empty, full, 0.1, None, "cuda")
    assert samples.n == 0 and composite_and_grads("cuda", samples)[1].shape == (0,)


def test_kernels_run_on_the_current_stream():
    spec = SPECS[3]
    points, table = torch.rand(100000, 3, device="cuda"), torch.randn(spec.n_entries, 4, device="cuda")
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        filled = torch.zeros_like(table)
        for _ in range(50):
            filled = filled + table
        out = hash_encode(points, filled, spec, "cuda")
    stream.synchronize()
    assert close(out, 50 * hash_encode(points, table, spec, "cuda"))
