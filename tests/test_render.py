"""The renderer against closed forms: a ball, an unmirrored two-coloured one, nothing at all; gradients; chunks."""

import math

import pytest
import torch
from torch import Tensor

from nerf_bridge.config import FieldConfig
from nerf_bridge.render import Rendering, render, render_in_chunks
from nerf_bridge.scene.cameras import Cameras, orbit_cameras, turntable_cameras
from nerf_bridge.scene.field import HashGridField
from nerf_bridge.scene.rays import camera_rays
from nerf_bridge.scene.shading import Shading

FOVY = math.radians(40)
FULL = torch.ones(16, 16, 16, dtype=torch.bool)
RED, BLUE = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.9])
BLACK = torch.zeros(1, 3)


class Ball:
    """A ball of even density: red where x > 0, blue elsewhere, with a green lid where z > 0.3."""

    def __init__(self, radius: float, sigma: float) -> None:
        self.radius, self.sigma = radius, sigma

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        albedo = torch.where(points[:, :1] > 0, RED, BLUE)
        albedo = torch.where(points[:, 2:] > 0.3, torch.tensor([0.1, 0.9, 0.1]), albedo)
        return self.sigma * (points.norm(dim=-1) < self.radius).float(), albedo

    def normals(self, points: Tensor) -> Tensor:
        return torch.nn.functional.normalize(points, dim=-1)


def front(azimuth: float = 0.0) -> Cameras:
    return orbit_cameras(*(torch.tensor([value]) for value in (azimuth, 0.0, 3.0, FOVY)))


SMALL = FieldConfig(n_levels=3, n_features=2, log2_table_size=10, base_resolution=4, finest_resolution=16)


def small_field(backend: str = "torch", settings: FieldConfig = SMALL) -> HashGridField:
    field = HashGridField(settings, seed=0, backend=backend)
    with torch.no_grad():
        field.table.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(1))
    return field


def ball_by_hand(cameras: Cameras, size: int, radius: float, sigma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Opacity, depth, entry point and half-chord of an even ball for each ray, from the integral in closed form."""
    rays = camera_rays(cameras, size, size)
    middle = -(rays.origins * rays.directions).sum(-1)
    squared = radius**2 - (rays.origins + middle[:, None] * rays.directions).square().sum(-1)
    half = squared.clamp(min=0).sqrt()
    entry, through = middle - half, torch.exp(-2 * sigma * half)
    depth = (entry + 1 / sigma) * (1 - through) - 2 * half * through
    return 1 - through, depth, rays.origins + entry[:, None] * rays.directions, half


@pytest.mark.parametrize("sigma", [0.5, 3.0])
def test_even_ball_has_the_opacity_and_depth_of_the_integral(sigma: float) -> None:
    cameras, step = turntable_cameras(2, 0.4, 3.0, FOVY), 1 / 200
    picture = render(Ball(0.7, sigma), FULL, cameras, 16, torch.zeros(2, 3), step, "torch")
    opacity, depth, _, half = ball_by_hand(cameras, 16, 0.7, sigma)
    assert (picture.opacity.view(-1) - opacity).abs().max() < sigma * step * 1.5
    assert (picture.depth.view(-1) - depth).abs().max() < sigma * step * 5
    assert (picture.opacity.view(-1)[half == 0] == 0).all() and 0.2 < (half > 0).float().mean() < 0.8


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=pytest.mark.compiler)])
@pytest.mark.parametrize("shading", ["albedo", "lambertian"])
@pytest.mark.parametrize("capacity", [None, 64])
def test_no_views_are_an_empty_rendering(backend: str, shading: Shading, capacity: int | None) -> None:
    field, nothing = small_field(backend), front()[:0]
    picture = render(field, FULL, nothing, 8, torch.zeros(0, 3), 1 / 32, backend, shading, capacity=capacity)
    assert picture.color.shape == (0, 8, 8, 3) and picture.opacity.shape == (0, 8, 8) and picture.n_samples == 0
    picture.color.sum().backward()


def test_opaque_ball_has_the_surface_and_normals_of_a_sphere() -> None:
    cameras, step = front(0.7), 1 / 200
    picture = render(Ball(0.7, 1e4), FULL, cameras, 24, BLACK, step, "torch", with_normals=True)
    _, _, entry, half = ball_by_hand(cameras, 24, 0.7, 1e4)
    clear = half > 0.1
    assert (picture.opacity.view(-1)[clear] > 0.999).all()
    seen = camera_rays(cameras, 24, 24)
    surface = seen.origins + picture.depth.view(-1, 1) * seen.directions
    assert (surface[clear].norm(dim=-1) - 0.7).abs().max() < 1.5 * step
    assert picture.normals is not None and picture.normals.shape == (1, 24, 24, 3)
    assert (picture.normals.view(-1, 3)[clear] - entry[clear] / 0.7).abs().max() < 0.05
    assert (picture.normals.view(-1, 3)[half == 0] == 0).all()


def test_front_view_is_unmirrored_and_upright_and_the_back_view_is_swapped() -> None:
    ball, size = Ball(0.7, 100.0), 33
    for azimuth, left, right in ((0.0, BLUE, RED), (math.pi, RED, BLUE)):
        color = render(ball, FULL, front(azimuth), size, BLACK, 1 / 64, "torch").color[0]
        assert torch.allclose(color[size // 2, 10], left, atol=0.02)
        assert torch.allclose(color[size // 2, -11], right, atol=0.02)
        assert color[8, size // 2, 1] > 0.8 > 0.2 > color[-9, size // 2, 1]  # the green lid is at the top
        assert (color[0] == 0).all()


def test_side_view_from_plus_x_is_red() -> None:
    color = render(Ball(0.7, 100.0), FULL, front(math.pi / 2), 9, BLACK, 1 / 64, "torch").color[0]
    assert torch.allclose(color[4, 4], RED, atol=0.02)


def test_background_shows_in_proportion_and_may_differ_by_pixel() -> None:
    cameras, ball = turntable_cameras(2, 0.1, 3.0, FOVY), Ball(0.7, 2.0)
    dark = render(ball, FULL, cameras, (8, 12), torch.zeros(2, 3), 1 / 32, "torch")
    colours = torch.tensor([[0.2, 0.5, 0.7], [1.0, 0.0, 0.3]])
    lit = render(ball, FULL, cameras, (8, 12), colours, 1 / 32, "torch")
    assert lit.color.shape == (2, 8, 12, 3) and lit.normals is None
    expected = dark.color + (1 - dark.opacity)[..., None] * colours[:, None, None, :]
    assert torch.allclose(lit.color, expected, atol=1e-6)
    by_pixel = colours[:, None, None, :].expand(2, 8, 12, 3)
    assert torch.equal(render(ball, FULL, cameras, (8, 12), by_pixel, 1 / 32, "torch").color, lit.color)


def test_light_from_above_brightens_the_top() -> None:
    ball, above = Ball(0.7, 100.0), torch.tensor([[0.0, 0.0, 1.0]])
    lit, plain = (
        render(ball, FULL, front(), 33, BLACK, 1 / 64, "torch", shading=shading, light_dir=above).color[0]
        for shading in ("textureless", "albedo")
    )
    assert lit[8, 16].min() > lit[-9, 16].max() + 0.2
    assert torch.allclose(lit[..., 0], lit[..., 1])
    lambertian = render(ball, FULL, front(), 33, BLACK, 1 / 64, "torch", "lambertian", above).color[0]
    assert torch.allclose(lambertian[-9, 16], plain[-9, 16] * 0.4, atol=0.02)


def test_no_light_given_means_a_light_at_the_camera() -> None:
    lit = render(Ball(0.7, 1e3), FULL, front(1.0), 33, BLACK, 1 / 100, "torch", shading="textureless").color[0]
    assert lit[16, 16].min() > 0.98 and lit[16, 8].max() < 0.9


@pytest.mark.parametrize("shading", ["albedo", "lambertian"])
def test_nothing_occupied_shows_the_background_and_gives_zero_gradients(shading: str) -> None:
    field, background = small_field(), torch.tensor([[0.3, 0.6, 0.9]], requires_grad=True)
    picture = render(field, ~FULL, front(), 8, background, 1 / 32, "torch", shading, with_normals=True)
    assert picture.n_samples == 0 and (picture.opacity == 0).all() and (picture.depth == 0).all()
    assert torch.equal(picture.color, background.expand(1, 8, 8, 3))
    assert picture.normals is not None and (picture.normals == 0).all()
    (picture.color.sum() + picture.opacity.sum()).backward()
    assert torch.allclose(background.grad, torch.full((1, 3), 64.0))
    assert field.table.grad is None or (field.table.grad == 0).all()


def test_views_that_look_past_the_box_show_the_background() -> None:
    field, cameras = small_field(), front()
    turned = cameras.c2w.clone()
    turned[:, :3, 0] *= -1
    turned[:, :3, 2] *= -1
    away = Cameras(turned, cameras.fovy_rad, cameras.azimuth_rad, cameras.elevation_rad, cameras.distance)
    picture = render(field, FULL, away, 8, torch.ones(1, 3), 1 / 32, "torch")
    assert picture.n_samples == 0 and (picture.color == 1).all()


def test_gradients_reach_every_parameter_through_every_output() -> None:
    jitter = torch.rand(2 * 64, generator=torch.Generator().manual_seed(0))
    for output in ("color", "opacity", "depth", "normals"):
        field, cameras = small_field(), turntable_cameras(2, 0.2, 3.0, FOVY)
        background = torch.rand(2, 3, generator=torch.Generator().manual_seed(1))
        picture = render(field, FULL, cameras, 8, background, 1 / 16, "torch", jitter=jitter, with_normals=True)
        pixels = getattr(picture, output)
        (pixels * torch.rand(pixels.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
        gradients = {name: parameter.grad for name, parameter in field.named_parameters()}
        for name, gradient in gradients.items():
            assert gradient is not None and gradient.isfinite().all() and gradient.abs().max() > 1e-6, (output, name)


def test_jitter_moves_the_samples() -> None:
    field = small_field()
    still = render(field, FULL, front(), 8, BLACK, 1 / 8, "torch").depth
    moved = render(field, FULL, front(), 8, BLACK, 1 / 8, "torch", jitter=torch.full((64,), 0.9)).depth
    assert (still - moved).abs().max() > 1e-3


@pytest.mark.parametrize("shading", ["albedo", "lambertian", "textureless"])
@pytest.mark.parametrize("with_normals", [False, True])
def test_chunks_equal_the_whole(shading: str, with_normals: bool) -> None:
    field, cameras = small_field(), turntable_cameras(2, 0.2, 3.0, FOVY)
    background = torch.tensor([[0.2, 0.5, 0.7], [1.0, 0.0, 0.3]])
    options = {"shading": shading, "with_normals": with_normals}
    whole = render(field, FULL, cameras, (6, 10), background, 1 / 16, "torch", **options)
    chunked = render_in_chunks(field, FULL, cameras, (6, 10), background, 1 / 16, "torch", **options, max_samples=1000)
    for name in ("color", "opacity", "depth"):
        assert torch.allclose(getattr(chunked, name), getattr(whole, name), atol=1e-6), name
    assert chunked.n_samples == whole.n_samples and not chunked.color.requires_grad
    assert (chunked.normals is not None) == with_normals
    if with_normals:
        assert torch.allclose(chunked.normals, whole.normals, atol=1e-5)


def test_chunks_bound_the_samples_in_memory() -> None:
    seen: list[int] = []

    class Counting(Ball):
        def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
            seen.append(len(points))
            return super().__call__(points)

    picture = render_in_chunks(Counting(0.7, 5.0), FULL, front(), 24, BLACK, 1 / 32, "torch", max_samples=2000)
    assert max(seen) <= 2000 and sum(seen) == picture.n_samples and len(seen) > 10


def pictures_and_gradients(
    backend: str, device: str, with_normals: bool = True, precision: str = "float32"
) -> list[Tensor]:
    """Every output and every parameter's gradient of one fixed rendering, on the CPU."""
    occupied = torch.rand(16, 16, 16, generator=torch.Generator().manual_seed(5)) < 0.5
    background = torch.rand(3, 3, generator=torch.Generator().manual_seed(6))
    jitter = torch.rand(3 * 256, generator=torch.Generator().manual_seed(7))
    field = small_field(backend, SMALL.model_copy(update={"precision": precision})).to(device)
    cameras = turntable_cameras(3, 0.3, 2.8, FOVY).to(device)
    scene = (occupied.to(device), cameras, 16, background.to(device), 1 / 32, backend)
    picture = render(field, *scene, jitter=jitter.to(device), with_normals=with_normals)
    outputs = [picture.color, picture.opacity, picture.depth, picture.thickness]
    outputs += [picture.normals] if picture.normals is not None else []
    sum((k + 1) * output.square().sum() for k, output in enumerate(outputs)).backward()
    gradients = [parameter.grad for parameter in field.parameters() if parameter.grad is not None]
    assert len(gradients) == 5
    return [tensor.detach().cpu() for tensor in (*outputs, *gradients)]


def furthest(ours: list[Tensor], reference: list[Tensor]) -> float:
    pairs = [(a.detach(), b.detach()) for a, b in zip(ours, reference, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


@pytest.mark.compiler
@pytest.mark.parametrize("with_normals", [True, False])
def test_cpu_kernels_render_what_torch_renders(with_normals: bool) -> None:
    reference = pictures_and_gradients("torch", "cpu", with_normals)
    assert furthest(pictures_and_gradients("cpu", "cpu", with_normals), reference) <= 1e-5


@pytest.mark.cuda
@pytest.mark.parametrize("with_normals", [True, False])
def test_cuda_kernels_render_what_torch_renders(with_normals: bool) -> None:
    reference = pictures_and_gradients("torch", "cpu", with_normals)
    assert furthest(pictures_and_gradients("cuda", "cuda", with_normals), reference) <= 1e-4


@pytest.mark.cuda
def test_half_precision_renders_nearly_the_same() -> None:
    reference = pictures_and_gradients("torch", "cpu", False)
    half = pictures_and_gradients("cuda", "cuda", False, "auto")
    assert furthest(half[:4], reference[:4]) <= 2e-3
    assert (
        0 < furthest(half[4:], reference[4:]) <= 0.02
    )  # units of the hidden layer near zero are on here and off there


@pytest.mark.cuda
def test_a_rendering_with_a_capacity_fits_a_cuda_graph_with_its_gradients() -> None:
    field, cameras = small_field("cuda").cuda(), turntable_cameras(3, 0.3, 2.8, FOVY).to("cuda")
    full = torch.ones(8, 8, 8, dtype=torch.bool, device="cuda")
    background, parameters = torch.full((3, 3), 0.5, device="cuda"), tuple(field.parameters())

    def pass_through(capacity: int | None) -> tuple[Rendering, tuple[Tensor, ...]]:
        picture = render(field, full, cameras, 16, background, 1 / 32, "cuda", capacity=capacity)
        return picture, torch.autograd.grad(picture.color.square().sum(), parameters)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            pass_through(100000)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held, held_gradients = pass_through(100000)
    with torch.no_grad():
        field.table.mul_(-2.0)
    graph.replay()
    picture, gradients = pass_through(None)
    assert held.overflow is not None and not bool(held.overflow) and picture.overflow is None
    assert furthest([held.color, *held_gradients], [picture.color, *gradients]) <= 1e-4
