"""The plain mesh renderer: colours by face, vertex and texture, light, antialiasing, background."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nerf_bridge.scene.cameras import Cameras, orbit_cameras, turntable_cameras
from nerf_bridge.scene.mesh_render import (
    ColoredMesh,
    FaceColors,
    MeshLook,
    Texture,
    VertexColors,
    face_normals,
    shade_mesh,
)
from nerf_bridge.scene.shading import AMBIENT

BACKENDS = (pytest.param("cpu", marks=pytest.mark.compiler), "torch")
FOVY = math.radians(40.0)
BLACK = torch.zeros(3)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def front_camera(distance: float = 3.0) -> Cameras:
    zero, one = torch.zeros(1), torch.ones(1)
    return orbit_cameras(zero, zero, distance * one, FOVY * one)


def wall() -> tuple[Tensor, Tensor]:
    """A square at y = 0 that exactly fills the front view from a distance of 3; corners from bottom left, ccw."""
    half = 3.0 * math.tan(FOVY / 2)
    vertices = torch.tensor([[-half, 0.0, -half], [half, 0.0, -half], [half, 0.0, half], [-half, 0.0, half]])
    return vertices, torch.tensor([[0, 1, 2], [0, 2, 3]])


def test_texture_stands_upright_and_unmirrored(backend: str) -> None:
    vertices, faces = wall()
    uvs = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    image = torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(0))
    mesh = ColoredMesh(vertices, faces, Texture(uvs, image))
    rendered, alpha = shade_mesh(mesh, front_camera(), 16, backend, supersample=1)
    torch.testing.assert_close(rendered[0], image, rtol=0, atol=1e-4)
    assert (alpha == 1).all()


def test_vertex_colours_blend_in_perspective(backend: str) -> None:
    """On a floor that runs away from the eye, a colour that is linear in y is the world's y at each pixel."""
    vertices = torch.tensor([[-9.0, -2.0, -1.0], [9.0, -2.0, -1.0], [9.0, 8.0, -1.0], [-9.0, 8.0, -1.0]])
    colors = ((vertices[:, 1] + 2.0) / 10.0)[:, None].expand(4, 3)
    mesh = ColoredMesh(vertices, torch.tensor([[0, 1, 2], [0, 2, 3]]), VertexColors(colors))
    rendered, alpha = shade_mesh(mesh, front_camera(), (32, 48), backend, BLACK, supersample=1)
    slope = -(1 - (torch.arange(32) + 0.5) / 16) * math.tan(FOVY / 2)  # metres down for each metre forward
    y = 1.0 / slope - 3.0
    rows = (slope > 0) & (y > -2.0) & (y < 8.0)
    assert rows.sum() > 5
    torch.testing.assert_close(alpha[0, :, 24], rows.float())
    torch.testing.assert_close(rendered[0, rows, 24, 0], (y[rows] + 2.0) / 10.0, rtol=0, atol=1e-4)


def test_background_and_antialiasing(backend: str) -> None:
    """A wall that ends in the middle of pixel column 8 covers half of it; each view has its own background."""
    vertices, faces = wall()
    vertices[:, 0] = torch.where(vertices[:, 0] > 0, vertices[:, 0] / 16, vertices[:, 0])
    cameras = front_camera()[[0, 0]]
    background = torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    look = FaceColors(torch.tensor([[1.0, 0.0, 0.0]] * 2))
    rendered, alpha = shade_mesh(ColoredMesh(vertices, faces, look), cameras, 16, backend, background)
    torch.testing.assert_close(alpha[0, 5], torch.tensor([1.0] * 8 + [0.5] + [0.0] * 7))
    torch.testing.assert_close(rendered[0, 5, 8], torch.tensor([0.5, 0.0, 0.5]))
    torch.testing.assert_close(rendered[1, 5, 8], torch.tensor([1.0, 0.5, 0.5]))
    torch.testing.assert_close(rendered[:, 5, 15], background)


def test_light_is_the_one_of_the_prior(backend: str) -> None:
    vertices, faces = wall()
    cameras = turntable_cameras(2, 0.0, 3.0, FOVY)
    rendered, _ = shade_mesh(ColoredMesh(vertices, faces, FaceColors(torch.ones(2, 3))), cameras, 8, backend, lit=True)
    cosine = 0.5 / math.sqrt(0.98)
    torch.testing.assert_close(rendered[0], torch.full((8, 8, 3), 0.775 + 0.225 * cosine))
    torch.testing.assert_close(rendered[1], torch.full((8, 8, 3), 0.775 - 0.225 * cosine))


def test_a_picture_may_be_behind_the_object(backend: str) -> None:
    vertices, faces = wall()
    vertices[:, 0] = torch.where(vertices[:, 0] > 0, vertices[:, 0] * 0.0, vertices[:, 0])  # the left half alone
    behind = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    mesh = ColoredMesh(vertices, faces, FaceColors(torch.zeros(2, 3)))
    rendered, _ = shade_mesh(mesh, front_camera(), 16, backend, behind)
    torch.testing.assert_close(rendered[:, :, 8:], behind[:, :, 8:])
    assert (rendered[:, :, :8] == 0).all()


def test_a_light_of_its_own_shades_each_view(backend: str) -> None:
    """Full light from the front, grazing light from the side, none from behind; colours get it times their own."""
    look = FaceColors(torch.tensor([[1.0, 0.5, 0.0]] * 2))
    cameras, lights = front_camera()[[0, 0, 0]], torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 1, 0]])
    rendered, _ = shade_mesh(ColoredMesh(*wall(), look), cameras, 4, backend, light_dir=lights)
    for image, light in zip(rendered, (1.0, AMBIENT, AMBIENT), strict=True):
        torch.testing.assert_close(image, (light * look.colors[0]).expand(4, 4, 3))


def test_a_texture_gets_gradients_where_it_is_seen(backend: str) -> None:
    vertices, faces = wall()
    image = torch.full((8, 8, 3), 0.5, requires_grad=True)
    uvs = torch.tensor([[0.0, 0.5], [1.0, 0.5], [1.0, 1.0], [0.0, 1.0]])  # the upper half of the texture alone
    rendered, _ = shade_mesh(ColoredMesh(vertices, faces, Texture(uvs, image)), front_camera(), 32, backend)
    rendered.sum().backward()
    assert image.grad is not None
    assert float(image.grad.sum()) == pytest.approx(32 * 32 * 3, rel=1e-4)
    assert (image.grad[:4] >= 0).all() and image.grad[1:3].sum() > 0 and (image.grad[5:] == 0).all()


def test_a_mesh_moves_with_its_look() -> None:
    mesh = ColoredMesh(*wall(), Texture(torch.rand(4, 2), torch.rand(4, 4, 3)))
    moved = mesh.to("meta")
    assert isinstance(moved.look, Texture)
    assert {t.device.type for t in (moved.vertices, moved.faces, moved.look.uvs, moved.look.image)} == {"meta"}


@pytest.mark.compiler
def test_backends_agree_and_colours_get_gradients() -> None:
    generator = torch.Generator().manual_seed(3)
    vertices = torch.rand(20, 3, generator=generator) * 1.6 - 0.8
    faces = torch.randint(0, 20, (30, 3), generator=generator)
    colors = torch.rand(20, 3, generator=generator).requires_grad_()
    cameras = turntable_cameras(3, 0.5, 3.0, FOVY)
    mesh = ColoredMesh(vertices, faces, VertexColors(colors))
    images = [shade_mesh(mesh, cameras, 24, name, BLACK, supersample=2, lit=True)[0] for name in ("cpu", "torch")]
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-5)
    images[0].sum().backward()
    assert colors.grad is not None and (colors.grad.abs().sum(dim=1) > 0).sum() > 5


def test_empty_mesh_shows_the_background_and_no_cameras_no_images(backend: str) -> None:
    nothing, none = torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)
    background = torch.tensor([0.2, 0.4, 0.6])
    empty = ColoredMesh(nothing, none, FaceColors(nothing))
    rendered, alpha = shade_mesh(empty, front_camera(), 4, backend, background, lit=True)
    torch.testing.assert_close(rendered, background.expand(1, 4, 4, 3))
    assert (alpha == 0).all()
    rendered, alpha = shade_mesh(ColoredMesh(*wall(), FaceColors(torch.ones(2, 3))), front_camera()[:0], 4, backend)
    assert rendered.shape == (0, 4, 4, 3) and alpha.shape == (0, 4, 4)


def test_face_normals_point_out_for_counter_clockwise_corners() -> None:
    vertices, faces = wall()
    expected = torch.tensor([[0.0, -1.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(face_normals(vertices, torch.cat([faces, torch.zeros(1, 3).long()])), expected)


@pytest.mark.parametrize(
    ("look", "message"),
    [
        (FaceColors(torch.ones(3, 3)), r"look.colors: expected shape \[2, 3\]"),
        (VertexColors(torch.ones(3, 3)), r"look.colors: expected shape \[4, 3\]"),
        (Texture(torch.ones(3, 2), torch.ones(4, 4, 3)), r"look.uvs: expected shape \[4, 2\]"),
        (Texture(torch.ones(4, 2), torch.ones(4, 4, 4)), r"look.image: expected shape"),
    ],
)
def test_looks_that_do_not_fit_are_refused(look: MeshLook, message: str, backend: str) -> None:
    with pytest.raises(ValueError, match=message):
        shade_mesh(ColoredMesh(*wall(), look), front_camera(), 4, backend)
