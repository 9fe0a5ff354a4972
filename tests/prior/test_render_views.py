"""Training views: colours, light, coverage and the tintable part, against analytic values and the plain renderer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nerf_bridge.prior.render_views import render_views
from nerf_bridge.scene.cameras import Cameras, orbit_cameras
from nerf_bridge.scene.mesh_render import ColoredMesh, FaceColors, shade_mesh

FOVY = math.radians(40.0)
LIGHT = np.array([0.3, -0.5, 0.8]) / math.sqrt(0.98)
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
BOX_FACES = np.array([face for a, b, c, d in QUADS for face in ((a, b, c), (a, c, d))], np.int32)


def cameras(*angles_deg: tuple[float, float]) -> Cameras:
    angles = torch.deg2rad(torch.tensor(angles_deg))
    same = torch.ones(len(angles_deg))
    return orbit_cameras(angles[:, 0], angles[:, 1], 3.0 * same, FOVY * same)


def box(center: tuple[float, float, float], half: float) -> NDArray[np.float32]:
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
    return (corners * half + np.array(center)).astype(np.float32)


def scene() -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.uint8], NDArray[np.uint8]]:
    """A grey tintable box at the centre, a smaller red one at +x that is not."""
    vertices = np.concatenate([box((0, 0, 0), 0.3), box((0.6, 0, 0), 0.15)])
    faces = np.concatenate([BOX_FACES, BOX_FACES + 8]).astype(np.int32)
    colors = np.repeat(np.array([[200, 200, 200], [250, 10, 20]], np.uint8), 12, axis=0)
    return vertices, faces, colors, np.repeat(np.array([1, 0], np.uint8), 12)


def render(view: Cameras, size: int = 64, supersample: int = 4, n_threads: int = 1) -> NDArray[np.uint8]:
    return render_views(*scene(), view.c2w.numpy(), view.fovy_rad.numpy(), size, supersample, n_threads)


@pytest.mark.compiler
def test_front_view_colours_sides_and_light() -> None:
    image = render(cameras((0.0, 0.0)))[0]
    assert image.shape == (8, 64, 64) and image.dtype == np.uint8
    shade = 0.55 + 0.45 * (0.5 + 0.5 * float(np.dot([0, -1, 0], LIGHT)))
    columns = np.nonzero(image[0] > 50)[1]
    assert columns.min() > 40, "red stands at +x, which is right in the front view"
    column, row = 32 + round(0.6 / 2.9 / math.tan(FOVY / 2) * 32), 32
    expected = np.rint(np.array([250, 10, 20]) * shade)
    np.testing.assert_allclose(image[:3, row, column], expected, atol=1)
    np.testing.assert_allclose(image[3:6, 32, 32], [round(200 * shade)] * 3, atol=1)
    np.testing.assert_allclose(image[6, 32, 32], 255 * shade, atol=1)
    assert image[7, 32, 32] == 255 and image[7, 0, 0] == 0
    assert not image[3:7, row, column].any() and not image[:3, 32, 32].any()


@pytest.mark.compiler
def test_light_is_fixed_in_the_world_and_normals_turn_to_the_camera() -> None:
    """The back face (normal +y) is darker than the front one; winding does not matter."""
    vertices, faces, colors, tintable = scene()
    view = cameras((0.0, 0.0), (180.0, 0.0))
    arguments = (colors, tintable, view.c2w.numpy(), view.fovy_rad.numpy())
    image = render_views(vertices, faces, *arguments)
    cosine = 0.5 / math.sqrt(0.98)
    assert abs(float(image[0, 3, 32, 32]) - 200 * (0.775 + 0.225 * cosine)) <= 1
    assert abs(float(image[1, 3, 32, 32]) - 200 * (0.775 - 0.225 * cosine)) <= 1
    np.testing.assert_array_equal(image, render_views(vertices, faces[:, ::-1], *arguments))


@pytest.mark.compiler
def test_coverage_of_a_square_is_its_area() -> None:
    """A square that faces the camera covers (side * focal / distance)^2 of the image, edge pixels in part."""
    vertices = np.array([[-0.5, 0, -0.5], [0.5, 0, -0.5], [0.5, 0, 0.5], [-0.5, 0, 0.5]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    view = cameras((0.0, 0.0))
    colors, tintable = np.full((2, 3), 255, np.uint8), np.zeros(2, np.uint8)
    image = render_views(vertices, faces, colors, tintable, view.c2w.numpy(), view.fovy_rad.numpy(), 64, 8)[0]
    expected = (1.0 / (3.0 * 2 * math.tan(FOVY / 2))) ** 2
    assert abs(image[7].mean() / 255 - expected) < 0.004
    shade = 0.775 + 0.225 * 0.5 / math.sqrt(0.98)
    np.testing.assert_allclose(image[0], image[7] * shade, atol=1.01)  # premultiplied


def two_halves() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, faces and colours of a square across the view, its right half twice as bright as its left one."""
    vertices = np.array([[-0.8, 0, -0.8], [0, 0, -0.8], [0, 0, 0.8], [-0.8, 0, 0.8], [0.8, 0, -0.8], [0.8, 0, 0.8]])
    faces = np.array([[0, 1, 2], [0, 2, 3], [1, 4, 5], [1, 5, 2]])
    colors = np.array([[100, 50, 0], [100, 50, 0], [200, 100, 0], [200, 100, 0]], np.uint8)
    return vertices, faces, colors


@pytest.mark.compiler
def test_relative_luminance_of_the_tintable_part() -> None:
    """Channel 6 is 1 (times shade) for the brightest tintable face, and the ratio of luminances for the others."""
    vertices, faces, colors = two_halves()
    view = cameras((0.0, 0.0))
    image = render_views(vertices, faces, colors, np.ones(4, np.uint8), view.c2w.numpy(), view.fovy_rad.numpy())[0]
    shade = 0.775 + 0.225 * 0.5 / math.sqrt(0.98)
    assert abs(image[6, 32, 24] - 255 * shade / 2) <= 1 and abs(image[6, 32, 40] - 255 * shade) <= 1
    black = render_views(
        vertices, faces, np.zeros_like(colors), np.ones(4, np.uint8), view.c2w.numpy(), view.fovy_rad.numpy()
    )[0]
    assert abs(black[6, 32, 32] - 255 * shade) <= 1 and not black[:6].any()


@pytest.mark.compiler
def test_each_tintable_part_has_its_own_bright_end() -> None:
    """The dark half of the above as a part of its own takes the tint as fully as the bright one."""
    vertices, faces, colors = two_halves()
    view, parts = cameras((0.0, 0.0)), np.array([2, 2, 1, 1], np.uint8)
    image = render_views(vertices, faces, colors, parts, view.c2w.numpy(), view.fovy_rad.numpy())[0]
    shade = 0.775 + 0.225 * 0.5 / math.sqrt(0.98)
    assert abs(image[6, 32, 24] - 255 * shade) <= 1 and abs(image[6, 32, 40] - 255 * shade) <= 1


@pytest.mark.compiler
def test_a_small_bright_spot_does_not_darken_every_tint() -> None:
    """What three tenths of a part exceed takes the tint as it is; a spot that is not tintable counts not at all."""
    vertices, spot = box((0, 0, 0), 0.3), box((0, -0.3, 0.2), 0.04)
    faces = np.concatenate([BOX_FACES, BOX_FACES + 8]).astype(np.int32)
    colors = np.repeat(np.array([[100, 100, 100], [250, 250, 250]], np.uint8), 12, axis=0)
    view = cameras((0.0, 0.0))
    shade = 0.775 + 0.225 * 0.5 / math.sqrt(0.98)
    for tintable in (np.ones(24, np.uint8), np.repeat(np.array([1, 0], np.uint8), 12)):
        arguments = (colors, tintable, view.c2w.numpy(), view.fovy_rad.numpy())
        image = render_views(np.concatenate([vertices, spot]), faces, *arguments)[0]
        assert abs(image[6, 36, 32] - 255 * shade) <= 1
    large = np.concatenate([vertices, box((0, -0.3, 0.2), 0.2)])
    image = render_views(large, faces, colors, np.ones(24, np.uint8), view.c2w.numpy(), view.fovy_rad.numpy())[0]
    assert abs(image[6, 38, 32] - 255 * shade * 0.4) <= 2


@pytest.mark.compiler
def test_equals_the_plain_renderer() -> None:
    view = cameras((20.0, 35.0), (205.0, -10.0))
    vertices, faces, colors, _ = scene()
    image = render(view).astype(np.float64)
    background = np.array([10.0, 120.0, 240.0])[:, None, None]
    composed = image[:, :3] + image[:, 3:6] + (1 - image[:, 7:8] / 255) * background
    look = FaceColors(torch.from_numpy(colors) / 255)
    mesh = ColoredMesh(torch.from_numpy(vertices), torch.from_numpy(faces), look)
    over = torch.tensor([10.0, 120.0, 240.0]) / 255
    expected, alpha = shade_mesh(mesh, view, 64, "torch", over, supersample=4, lit=True)
    np.testing.assert_allclose(image[:, 7], 255 * alpha.numpy(), atol=0.51)
    np.testing.assert_allclose(composed, 255 * expected.permute(0, 3, 1, 2).numpy(), atol=2)


@pytest.mark.compiler
def test_result_does_not_depend_on_threads() -> None:
    view = cameras(*((40.0 * index, 10.0 * index) for index in range(7)))
    np.testing.assert_array_equal(render(view), render(view, n_threads=3))


@pytest.mark.compiler
def test_eye_inside_the_mesh_and_degenerate_faces() -> None:
    """All around the eye is wall: covered everywhere, though every face crosses or lies behind the near plane."""
    vertices = box((0, -3, 0), 0.5)
    faces = np.concatenate([np.zeros((2, 3), np.int32), BOX_FACES, np.array([[0, 1, 1]], np.int32)])
    colors, view = np.full((len(faces), 3), 90, np.uint8), cameras((0.0, 0.0))
    image = render_views(
        vertices, faces, colors, np.zeros(len(faces), np.uint8), view.c2w.numpy(), view.fovy_rad.numpy()
    )
    assert (image[0, 7] == 255).all() and (image[0, 0] > 40).all()


@pytest.mark.compiler
@pytest.mark.parametrize("n_views", [0, 2])
def test_empty_mesh(n_views: int) -> None:
    view = cameras(*[(0.0, 0.0)] * 2)
    image = render_views(
        np.zeros((0, 3), np.float32),
        np.zeros((0, 3), np.int32),
        np.zeros((0, 3), np.uint8),
        np.zeros(0, np.uint8),
        view.c2w.numpy()[:n_views],
        view.fovy_rad.numpy()[:n_views],
        size=8,
    )
    assert image.shape == (n_views, 8, 8, 8) and not image.any()


def test_wrong_arguments_are_refused() -> None:
    vertices, faces, colors, tintable = scene()
    view = cameras((0.0, 0.0))
    rest = (colors, tintable, view.c2w.numpy(), view.fovy_rad.numpy())
    with pytest.raises(ValueError, match=r"faces: expected indices in 0\.\.14, got 0\.\.15"):
        render_views(vertices[:-1], faces, *rest)
    with pytest.raises(ValueError, match=r"face_colors: expected shape \[23, 3\]"):
        render_views(vertices, faces[:-1], *rest)
    with pytest.raises(ValueError, match=r"c2w: expected shape \[any, 4, 4\]"):
        render_views(vertices, faces, colors, tintable, view.c2w.numpy()[0], view.fovy_rad.numpy())
    with pytest.raises(ValueError, match="at least 1"):
        render_views(vertices, faces, *rest, size=0)
