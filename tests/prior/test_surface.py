"""Decimation and painting keep what a small render shows."""

import numpy as np
import pytest

from nerf_bridge.prior.data.curation import curate, is_dropped, silhouette_share
from nerf_bridge.prior.data.decimate import decimate, decimate_pieces, leaf_cards, share_budget
from nerf_bridge.prior.data.model import LibraryModel, face_areas, normalise_vertices
from nerf_bridge.prior.data.shapes import ball, box
from nerf_bridge.prior.data.surface import shrink
from nerf_bridge.prior.data.textures import build_colour_cloud


def fine_grid(n):
    """A square [0, 1]^2 of 2·n² triangles."""
    line = np.linspace(0.0, 1.0, n + 1)
    x, y = np.meshgrid(line, line, indexing="ij")
    vertices = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], axis=1)
    a = (np.arange(n)[:, None] * (n + 1) + np.arange(n)).ravel()
    faces = np.concatenate([np.stack([a, a + n + 1, a + n + 2], 1), np.stack([a, a + n + 2, a + 1], 1)])
    return vertices, faces


def leaves(n, rng):
    """n loose small triangles in a unit cube."""
    centres = rng.random((n, 1, 3))
    vertices = (centres + 0.01 * rng.standard_normal((n, 3, 3))).reshape(-1, 3)
    return vertices, np.arange(3 * n).reshape(n, 3)


def as_model(vertices, faces, name="Test#box", noun="Box"):
    return LibraryModel(
        name, noun, "", "Test", "me", "CC0", normalise_vertices(vertices), faces.astype(np.int32),
        np.full((len(faces), 3), 200, np.uint8), np.ones(len(faces), np.uint8),
    )  # fmt: skip


def test_decimation_keeps_a_square_whole():
    vertices, faces = decimate(*fine_grid(60), budget=200)
    assert len(faces) <= 300
    assert face_areas(vertices, faces).sum() == pytest.approx(1.0, rel=0.02)
    assert np.allclose(np.ptp(vertices, axis=0), [1, 1, 0], atol=0.02)


def test_small_meshes_pass_unchanged():
    vertices, faces = box(1.0, 1.0, 1.0)
    same_vertices, same_faces = decimate(vertices, faces, budget=100)
    assert same_vertices is vertices and same_faces is faces


def test_swarms_of_leaves_keep_their_area_and_spread():
    rng = np.random.default_rng(0)
    vertices, faces = leaves(3000, rng)
    fewer_vertices, fewer_faces = decimate_pieces(vertices, faces, 600, rng)
    assert len(fewer_faces) <= 650
    assert face_areas(fewer_vertices, fewer_faces).sum() == pytest.approx(face_areas(vertices, faces).sum(), rel=0.25)
    assert np.allclose(fewer_vertices.mean(axis=0), 0.5, atol=0.05)


def test_a_card_lies_in_the_plane_of_its_leaf():
    vertices = 0.1 * fine_grid(4)[0]
    piece, rng = np.zeros(len(vertices), dtype=int), np.random.default_rng(0)
    cards, card_faces = leaf_cards(vertices, piece, np.array([0.01]), np.array([True]), 5, rng)
    assert cards.shape == (4, 3) and card_faces.shape == (2, 3)
    assert np.allclose(cards[:, 2], 0.0)
    assert face_areas(cards, card_faces).sum() == pytest.approx(0.01, rel=1e-6)


def test_budget_never_exceeds_what_a_group_has():
    budgets = share_budget(np.array([10.0, 1000.0, 5000.0]), np.array([5.0, 1.0, 4.0]), 2000)
    assert budgets[0] == 10
    assert budgets.sum() == pytest.approx(2000)


def test_half_open_texture_covers_half():
    corners = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0]]], dtype=float)
    small = shrink(corners, np.array([np.sqrt(0.5)]))
    faces = np.array([[0, 1, 2]])
    assert face_areas(small[0], faces).sum() == pytest.approx(0.25)
    assert np.array_equal(shrink(corners, np.array([0.99])), corners)


def test_two_sides_of_a_thin_sheet_keep_their_colours():
    corners = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0, 0], [0, 1, 0], [1, 0, 0]]], dtype=float)
    uvs = np.array([[[0.1, 0.5]] * 3, [[0.9, 0.5]] * 3])
    texture = np.zeros((8, 8, 4), dtype=np.uint8)
    texture[:, :4] = (255, 0, 0, 255)
    texture[:, 4:] = (0, 0, 255, 255)
    cloud = build_colour_cloud(corners, uvs, texture, np.random.default_rng(0))
    up, down = np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.0, -1.0])
    middle = np.array([0.3, 0.3, 0.0])
    assert np.allclose(cloud.lookup(middle, up), [1, 0, 0, 1])
    assert np.allclose(cloud.lookup(middle, down), [0, 0, 1, 1])


def test_thin_things_and_plugs_are_dropped():
    cube, rod = box(1, 1, 1), box(1, 0.01, 0.01)
    names = [model.name for model in curate([as_model(*cube), as_model(*rod, name="Test#rod", noun="Rod")])]
    assert names == ["Test#box"]
    assert is_dropped("x", "Rounded type A plug") and not is_dropped("x", "Chair")


def test_share_of_a_ball_is_its_disc():
    model = as_model(*ball())
    radius = 0.5 * float(np.ptp(model.vertices[:, 0]))
    width = 6.0 * np.tan(np.deg2rad(20.0))
    assert silhouette_share(model) == pytest.approx(np.pi * radius**2 / width**2, rel=0.02)
