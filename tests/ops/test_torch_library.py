"""The kernels as operators: torch.compile takes them whole, and they keep what an operator promises."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from nerf_bridge.config import FieldConfig
from nerf_bridge.ops import library
from nerf_bridge.ops.composite import composite
from nerf_bridge.ops.field_composite import DensityActivation, field_composite
from nerf_bridge.ops.hash_encoding import HashGridSpec, hash_encode, hash_encode_point_gradient
from nerf_bridge.ops.march import Samples, march_rays
from nerf_bridge.ops.rays import pixel_rays
from nerf_bridge.scene.cameras import turntable_cameras
from nerf_bridge.scene.field import HashGridField

pytestmark = pytest.mark.compiler
SPEC = HashGridSpec(n_levels=3, n_features=2, log2_table_size=8, base_resolution=2, finest_resolution=16)
SHAPE = (3, 2, 8, 2, 16)
CAPACITY = 200


def scene() -> tuple[torch.Tensor, ...]:
    """Rays, one of which misses the box, and its cells."""
    rays_o = torch.tensor([[-2.0, 0.1, 0.2], [0.3, -2.0, 0.1], [-2.0, 5.0, 0.0]])
    rays_d = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    return rays_o, rays_d, torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.6


def marched() -> Samples:
    return march_rays(*scene(), 0.05, None, "cpu")


def inputs() -> tuple[torch.Tensor, ...]:
    """Points, table, gradient over features."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(50, 3, generator=generator)
    table = torch.randn(SPEC.n_entries, 2, generator=generator)
    grad_out = torch.randn(50, SPEC.n_levels * 2, generator=generator)
    return tuple(tensor.requires_grad_() for tensor in (points, table, grad_out))


def compiled_equals_eager(function, *leaves):
    """Outputs and gradients of `function`, compiled as one graph, are those that it has by itself."""
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for one, other in zip(*(with_gradients(run, leaves) for run in (compiled, function)), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def with_gradients(function, leaves):
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), leaves)]


def test_march_encode_and_composite_compile_as_one_graph():
    rays_o, rays_d, occupied = scene()

    def render(table: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        samples = march_rays(rays_o, rays_d, occupied, 0.05, None, "cpu", CAPACITY)
        features = hash_encode(samples.points * 0.5 + 0.5, table, SPEC, "cpu")
        packed = (samples.t_starts, samples.t_ends, samples.packed_info)
        out, opacity, depth, weights = composite(features[:, 0].exp() * scale, features[:, 1:4], *packed, "cpu")
        return torch.cat([out.flatten(), opacity, depth, weights])

    compiled_equals_eager(render, inputs()[1], torch.tensor(3.0, requires_grad=True))


@pytest.mark.parametrize("in_one_graph", [True, False])
def test_a_march_without_capacity_makes_the_samples_there_are_in_one_graph_or_between_two(in_one_graph):
    rays_o, rays_d, occupied = scene()

    def render(rays_o: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        samples = march_rays(rays_o, rays_d, occupied, 0.05, None, "cpu")
        packed = (samples.t_starts, samples.t_ends, samples.packed_info)
        return composite(samples.points.square().sum(1) * scale, samples.points, *packed, "cpu")[0]

    scale = torch.tensor(3.0, requires_grad=True)
    compiled = torch.compile(render, fullgraph=in_one_graph, backend="aot_eager")
    for origins in (rays_o, rays_o - 0.3 * rays_d, rays_o + 5.0):  # the last ones have no samples
        results = [with_gradients(lambda of, run=run, at=origins: run(at, of), [scale]) for run in (compiled, render)]
        for one, other in zip(*results, strict=True):
            assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(("backend", "width"), [("cpu", 32), ("cpu", 24), ("torch", 32)])
def test_a_field_compiles_as_one_graph(backend, width):
    """By the decoder's kernel, with a width that it has not, and without kernels."""
    settings = FieldConfig(n_levels=2, log2_table_size=8, finest_resolution=64, hidden_width=width)
    field = HashGridField(settings, seed=0, backend=backend)
    points, parameters = torch.rand(50, 3) * 2.2 - 1.1, list(field.parameters())
    for function in (field.raw, lambda p: torch.cat([part.flatten() for part in field(p)])):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        results = [with_gradients(lambda *_, run=run: run(points), parameters) for run in (compiled, function)]
        assert len(results[0]) == 1 + len(parameters)
        for one, other in zip(*results, strict=True):
            assert torch.allclose(one, other, atol=1e-6) and float(other.abs().max()) > 0


def test_a_whole_render_compiles_as_one_graph():
    """From cameras over rays, march, field and compositing to pixels, and back to the field's parameters."""
    field = HashGridField(FieldConfig(n_levels=2, log2_table_size=8, finest_resolution=64), seed=0, backend="cpu")
    (c2w, fovy_rad), occupied, parameters = cameras(), scene()[2], list(field.parameters())

    def render(*_: torch.Tensor) -> torch.Tensor:
        samples = march_rays(*pixel_rays(c2w, fovy_rad, 6, 5, "cpu"), occupied, 0.05, None, "cpu")
        sigma, albedo = field(samples.points)
        packed = (samples.t_starts, samples.t_ends, samples.packed_info)
        return composite(sigma, albedo, *packed, "cpu")[0]

    compiled = torch.compile(render, fullgraph=True, backend="aot_eager")
    for one, other in zip(*(with_gradients(run, parameters) for run in (compiled, render)), strict=True):
        assert float(other.abs().max()) > 0 and (one - other).abs().max() <= 1e-5 * other.abs().max()


def test_a_field_compiles_before_anything_has_loaded_the_operators():
    program = (
        "import sys, torch\n"
        "from nerf_bridge.config import FieldConfig\n"
        "from nerf_bridge.scene.field import HashGridField\n"
        "field = HashGridField(FieldConfig(n_levels=4, log2_table_size=8), seed=0, backend='cpu')\n"
        "assert 'nerf_bridge.ops.library' not in sys.modules\n"
        "points = torch.rand(9, 3)\n"
        "compiled = torch.compile(field.raw, fullgraph=True, backend='aot_eager')\n"
        "assert torch.equal(compiled(points), field.raw(points))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_rays_of_pixels_compile_with_the_kernel_and_with_gradients_over_the_cameras():
    c2w, fovy_rad = cameras()
    compiled = torch.compile(pixel_rays, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(c2w, fovy_rad, 3, 4, "cpu"), pixel_rays(c2w, fovy_rad, 3, 4, "cpu"), strict=True):
        assert torch.equal(one, other)
    leaves = [c2w.requires_grad_(), fovy_rad.requires_grad_()]
    compiled_equals_eager(lambda at, over: torch.cat(pixel_rays(at, over, 3, 4, "cpu")), *leaves)


def cameras() -> tuple[torch.Tensor, torch.Tensor]:
    """Two cameras around the box: c2w [2, 4, 4], fovy_rad [2]."""
    of = turntable_cameras(2, 0.3, 2.0, 0.7)
    return of.c2w, of.fovy_rad


def test_a_field_composites_in_a_compiled_graph():
    samples, middles = marched(), torch.tensor([2.0, 2.0, 2.0])
    activation = DensityActivation("trunc_exp", 4.0, 0.5)
    leaves = torch.randn(samples.n, 4, requires_grad=True), torch.rand(3, 3, requires_grad=True)

    def seen(raw: torch.Tensor, behind: torch.Tensor) -> torch.Tensor:
        color, opacity, depth, _ = field_composite(raw, samples, middles, behind, activation, "cpu")
        return torch.cat([color.flatten(), opacity, depth])

    compiled_equals_eager(seen, *leaves)


@pytest.mark.parametrize("side", [0, 1, 2, 3])
def test_a_compiled_composite_has_the_gradient_of_each_output_alone(side):
    samples = marched()
    packed = (samples.t_starts, samples.t_ends, samples.packed_info)
    leaves = torch.rand(samples.n, requires_grad=True), torch.randn(samples.n, 2, requires_grad=True)

    def one_output(sigmas: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return composite(sigmas, features, *packed, "cpu")[side]

    compiled = torch.compile(one_output, fullgraph=True, backend="aot_eager")
    results = [torch.autograd.grad(run(*leaves).sum(), leaves, allow_unused=True) for run in (compiled, one_output)]
    for got, expected in zip(*results, strict=True):
        assert torch.allclose(zeros_for_none(got, leaves[1]), zeros_for_none(expected, leaves[1]))


def zeros_for_none(gradient: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def test_the_gradient_over_the_points_compiles_with_its_own_gradients():
    compiled_equals_eager(lambda p, t, g: hash_encode_point_gradient(p, t, g, SPEC, "cpu"), *inputs())


def test_sizes_may_change_without_compiling_for_each():
    backend = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(lambda p, t: hash_encode(p, t, SPEC, "cpu"), fullgraph=True, backend=backend, dynamic=True)
    points, table, _ = inputs()
    for n in (50, 40, 30, 20, 3):
        assert torch.equal(compiled(points[:n], table), hash_encode(points[:n], table, SPEC, "cpu"))
    assert backend.frame_count <= 2


def test_operators_keep_their_promises():
    kernels, samples = library.KERNELS, marched()
    points, table, grad_out = inputs()
    raw, along = [tensor.detach() for tensor in (points, table, grad_out)], torch.randn(50, 3)
    packed = (samples.t_starts, samples.t_ends, samples.packed_info)
    sigmas, features = torch.rand(samples.n, requires_grad=True), torch.randn(samples.n, 2, requires_grad=True)
    with torch.no_grad():
        _, opacity, _, weights = composite(sigmas, features, *packed, "cpu")
    field = (torch.randn(samples.n, 4, requires_grad=True), torch.rand(3, 3), samples.points, *packed, torch.ones(3))
    density = (4.0, 0.5, True, "cpu")
    with torch.no_grad():
        made = kernels.field_composite(*field, *density)
    over = (torch.rand(3, 3), None, torch.rand(3), None)
    network = [torch.randn(s, requires_grad=True) for s in ((50, 6), (16, 6), (16,), (4, 16), (4,))]
    arguments = {
        kernels.march: (*scene(), 0.05, None, "cpu", CAPACITY),
        kernels.march_all: (*scene(), 0.05, None, "cpu"),
        kernels.pixel_rays: (*cameras(), 3, 4, "cpu"),
        kernels.decode: (*network, True),
        kernels.decode_bwd: (*(tensor.detach() for tensor in network[:4]), torch.randn(50, 4), True),
        kernels.composite: (sigmas, features, *packed, "cpu"),
        kernels.composite_bwd: (features.detach(), *packed, weights, opacity, None, opacity, None, weights, "cpu"),
        kernels.field_composite: (*field, *density),
        kernels.field_composite_bwd: (field[0].detach(), *field[1:], made[1], *made[4:], *over, *density),
        kernels.hash_encode: (points, table, SHAPE, "cpu"),
        kernels.hash_encode_point_gradient: (points, table, grad_out, SHAPE, "cpu"),
        kernels.hash_encode_fwd: (raw[0], along, raw[1], SHAPE, "cpu"),
        kernels.hash_encode_bwd_table: (raw[0], None, raw[2], SHAPE, "cpu"),
        kernels.hash_encode_bwd_points: (raw[0], along, raw[1], raw[2], SHAPE, "cpu"),
    }
    for kernel, values in arguments.items():
        assert set(torch.library.opcheck(kernel.default, values).values()) == {"SUCCESS"}, kernel


def test_shapes_of_the_half_precision_network_are_known_without_a_gpu():
    def of(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta")

    network = (of(16, 6), of(16), of(4, 16))
    out, features = library.KERNELS.grid_mlp(of(9, 3), of(SPEC.n_entries, 2), *network, of(4), None, False, SHAPE)
    assert out.shape == (9, 4) and features.shape == (3, 9, 2) and features.dtype == torch.half
    rays = torch.empty(2, 2, dtype=torch.int64, device="meta")
    grads = library.KERNELS.grid_mlp_bwd(of(9, 3), features, *network, rays, out, True, SHAPE)
    assert [tuple(grad.shape) for grad in grads] == [(SPEC.n_entries, 2), (16, 6), (16,), (4, 16), (4,)]


@pytest.mark.cuda
def test_the_half_precision_network_compiles_as_one_graph_on_the_gpu():
    from nerf_bridge.ops.grid_mlp import grid_mlp

    shapes = ((SPEC.n_entries, 2), (16, 6), (16,), (4, 16), (4,))
    leaves = [torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes]
    points = torch.rand(300, 3, device="cuda")

    def network(*parameters: torch.Tensor) -> torch.Tensor:
        return grid_mlp(points, *parameters, SPEC)

    runs = (torch.compile(network, fullgraph=True, backend="aot_eager"), network)
    for one, other in zip(*(with_gradients(run, leaves) for run in runs), strict=True):
        assert (one - other).abs().max() <= 1e-3 * other.abs().max()


def test_the_operators_gradients_are_those_of_the_plain_function_in_second_order_too():
    """A loss on gradients over points, as normals make."""
    points, table, grad_out = inputs()
    results = []
    for encode in (
        lambda p, t: hash_encode(p, t, SPEC, "cpu"),
        lambda p, t: library.KERNELS.hash_encode(p, t, SHAPE, "cpu"),
    ):
        (first,) = torch.autograd.grad((encode(points, table) * grad_out).sum(), points, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), table)[0])
    assert float(results[0].abs().max()) > 0 and torch.allclose(*results, rtol=1e-5)
