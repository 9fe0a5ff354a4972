"""Which part a colour word changes, and what an object's own colour is called."""

import numpy as np
import pytest

from nerf_bridge.prior.data.model import face_areas
from nerf_bridge.prior.data.shapes import box
from nerf_bridge.prior.data.surface import PaintedMesh
from nerf_bridge.prior.data.tinting import own_colour_word, tintable_faces
from nerf_bridge.prior.data.visibility import visible_pixels


def painted(parts):
    """A mesh of boxes: parts of (size, shift, colour, material name, is glass)."""
    meshes = [box(*size) for size, *_ in parts]
    offsets = np.cumsum([0] + [len(vertices) for vertices, _ in meshes])
    shifts = [np.array(shift) for _, shift, *_ in parts]
    return PaintedMesh(
        vertices=np.concatenate([v + shift for (v, _), shift in zip(meshes, shifts, strict=True)]),
        faces=np.concatenate([f + o for (_, f), o in zip(meshes, offsets, strict=False)]),
        colors=np.concatenate([np.tile(part[2], (len(f), 1)) for part, (_, f) in zip(parts, meshes, strict=True)]),
        materials=np.concatenate([np.full(len(f), k) for k, (_, f) in enumerate(meshes)]),
        material_names=[part[3] for part in parts],
        is_glass=np.array([part[4] for part in parts]),
    )


RED, BLUE, OAK = (0.8, 0.1, 0.1), (0.1, 0.2, 0.8), (0.6, 0.4, 0.2)


def test_what_is_inside_does_not_count():
    inside = [((0.7, 0.7, 0.02), (0.0, 0.0, 0.1 * k), BLUE, "shelf", False) for k in range(1, 8)]
    mesh = painted([((0.9, 0.9, 0.9), (0.0, 0.0, 0.0), RED, "outside", False), *inside])
    areas = face_areas(mesh.vertices, mesh.faces)
    assert areas[mesh.materials > 0].sum() > areas[mesh.materials == 0].sum()
    seen = visible_pixels(mesh.vertices - np.array([0.0, 0.0, 0.45]), mesh.faces)
    assert seen[mesh.materials > 0].sum() == 0
    tintable = tintable_faces(mesh, seen)
    assert tintable[mesh.materials == 0].all() and not tintable[mesh.materials > 0].any()
    assert own_colour_word(mesh, tintable, seen) == "red"


def test_visible_pixels_grow_with_the_face():
    vertices, faces = box(0.8, 0.4, 0.4)
    seen = visible_pixels(vertices - np.array([0.0, 0.0, 0.2]), faces)
    normals = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
    front = seen[np.abs(normals[:, 1]) > 1e-6].sum()
    side = seen[np.abs(normals[:, 0]) > 1e-6].sum()
    assert front == pytest.approx(2.0 * side, rel=0.05)


def test_glass_is_tinted_only_when_there_is_little_else():
    def window(frame_height):
        pane, frame = ((0.9, 0.1, 0.9), (0, 0, 0), BLUE, "pane", True), (0.9, 0.1, frame_height)
        return painted([pane, (frame, (0, 0, 0.9), RED, "frame", False)])

    half_frame, mostly_pane = window(0.7), window(0.5)
    seen = face_areas(half_frame.vertices, half_frame.faces)
    assert not tintable_faces(half_frame, seen)[half_frame.materials == 0].any()
    parts = tintable_faces(mostly_pane, face_areas(mostly_pane.vertices, mostly_pane.faces))
    assert (parts == (mostly_pane.materials == 0)).all()
    bottle = painted(
        [((0.5, 0.5, 0.9), (0, 0, 0), BLUE, "glass", True), ((0.1, 0.1, 0.05), (0, 0, 0.9), RED, "cork", False)]
    )
    seen = face_areas(bottle.vertices, bottle.faces)
    assert tintable_faces(bottle, seen)[bottle.materials == 0].all()


def test_like_colours_are_tinted_together():
    near = tuple(channel + 0.03 for channel in RED)
    mesh = painted([((1, 1, 0.5), (0, 0, 0), RED, "seat", False), ((1, 0.3, 1), (0, 0.6, 0), near, "back", False)])
    assert tintable_faces(mesh, face_areas(mesh.vertices, mesh.faces)).all()


def test_materials_are_added_until_most_of_what_shows_is_tinted():
    def parts(*shares):
        colours = (RED, BLUE, OAK, (0.9, 0.9, 0.9), (0.1, 0.1, 0.1))
        mesh = painted([((1, 1, 1), (2 * k, 0, 0), colours[k], f"m{k}", False) for k in range(len(shares))])
        found = tintable_faces(mesh, np.array(shares)[mesh.materials])  # all boxes have as many faces
        return [int(found[mesh.materials == k].max()) for k in range(len(shares))]

    assert parts(0.61, 0.39) == [1, 0]
    assert parts(0.2, 0.45, 0.35) == [0, 1, 2]
    assert parts(0.12, 0.33, 0.29, 0.26) == [0, 1, 2, 0]
    assert parts(0.2, 0.2, 0.2, 0.2, 0.2) == [0, 0, 0, 0, 0]  # of too many colours


def test_the_own_colour_is_that_of_the_first_part():
    mesh = painted([((1, 1, 1), (0, 0, 0), RED, "a", False), ((1, 1, 1), (2, 0, 0), BLUE, "b", False)])
    seen = np.where(mesh.materials == 0, 0.8, 0.2)
    assert own_colour_word(mesh, np.where(mesh.materials == 0, 1, 2), seen) == "red"


@pytest.mark.parametrize(("material", "word"), [("oak.001 plank.jpg", "wooden"), ("paint", "brown")])
def test_wood_is_known_by_its_name_and_hue(material, word):
    mesh = painted([((1, 1, 1), (0, 0, 0), (0.5, 0.32, 0.18), material, False)])
    seen = face_areas(mesh.vertices, mesh.faces)
    assert own_colour_word(mesh, tintable_faces(mesh, seen), seen) == word
    blue = painted([((1, 1, 1), (0, 0, 0), BLUE, material, False)])
    assert own_colour_word(blue, tintable_faces(blue, seen), seen) == "blue"
