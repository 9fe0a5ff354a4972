"""Reading catalogues: a tiny .sh3f written by the test, placed, painted and named."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from nerf_bridge.errors import UserError
from nerf_bridge.prior.data.library import find_catalogues, iter_library, load_entry, read_catalogue
from nerf_bridge.prior.data.model import face_areas
from nerf_bridge.prior.data.obj import read_mtl, read_obj, triangulate_polygon

# An arrow-like marker: a big slab, a red block at the front (+z of the file), a blue block on the right (+x).
OBJ = """mtllib thing.mtl
v -1 0 -2
v 1 0 -2
v 1 0 2
v -1 0 2
v -0.2 1 2
v 0.2 1 2
v 1 1 0.2
v 1 1 -0.2
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl slab
f 1/1 2/2 3/3 4/4
usemtl front
f 4 3 6 5
usemtl right
f 2 3 7 8
"""
MTL = r"""newmtl slab
Kd 0 0 0
map_Kd C:\Users\someone\WOOD.png
newmtl front
Kd 1 0 0
newmtl right
Kd 0 0 1
d 1.0
"""
CATALOGUE = """# a comment
license=Creative Commons Attribution 3.0 license
id#1=Test#thing
name#1=Chaise longue \\u20ac
tags#1=Seat, Test
category#1=Living room
model#1=/test/thing/thing.obj
width#1=100
depth#1=50
height#1=20
creator#1=Someone
"""


def texture_png() -> bytes:
    """Left half green, right half yellow."""
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[:, :8] = (0, 200, 0)
    pixels[:, 8:] = (240, 220, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def write_catalogue(path, catalogue=CATALOGUE, obj=OBJ):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", catalogue.encode("latin-1"))
        archive.writestr("test/thing/thing.obj", obj)
        archive.writestr("test/thing/thing.mtl", MTL)
        archive.writestr("test/thing/wood.PNG", texture_png())
    return path


def load_thing(tmp_path, catalogue=CATALOGUE):
    with zipfile.ZipFile(write_catalogue(tmp_path / "test.sh3f", catalogue)) as archive:
        (entry,) = read_catalogue(archive)
        return load_entry(archive, entry)


def faces_near(model, rgb):
    return np.abs(model.face_colors.astype(int) - rgb).max(axis=1) < 12


def test_catalogue_fields_and_escapes(tmp_path):
    with zipfile.ZipFile(write_catalogue(tmp_path / "test.sh3f")) as archive:
        (entry,) = read_catalogue(archive)
    assert entry.name == "Chaise longue €"
    assert entry.tags == ("Seat", "Test")
    assert (entry.width, entry.depth, entry.height) == (100.0, 50.0, 20.0)
    assert entry.licence == "CC-BY 3.0"
    assert np.array_equal(entry.rotation, np.eye(3))


def test_model_stands_in_world_space_at_true_proportions(tmp_path):
    model = load_thing(tmp_path)
    size = np.ptp(model.vertices, axis=0)
    assert np.allclose(size / size[0], [1.0, 0.5, 0.2], atol=1e-4)  # width along x, depth along y, height along z
    assert 0.5 * np.linalg.norm(size) == pytest.approx(0.9, abs=1e-4)
    assert np.allclose(model.vertices.min(axis=0) + model.vertices.max(axis=0), 0.0, atol=1e-4)


def test_front_faces_minus_y_and_right_stays_right(tmp_path):
    model = load_thing(tmp_path)
    front = model.vertices[model.faces[faces_near(model, (255, 0, 0))]].reshape(-1, 3)
    right = model.vertices[model.faces[faces_near(model, (0, 0, 255))]].reshape(-1, 3)
    assert front[:, 1].max() < -0.3
    assert right[:, 0].min() > 0.3


def test_model_rotation_applies_before_the_sizes(tmp_path):
    # A quarter turn about the file's y axis brings what was at +x to +z, the front.
    turned = load_thing(tmp_path, CATALOGUE + "modelRotation#1=0 0 -1 0 1 0 1 0 0\n")
    blue = turned.vertices[turned.faces[faces_near(turned, (0, 0, 255))]].reshape(-1, 3)
    assert blue[:, 1].max() < -0.2
    assert np.allclose(np.ptp(turned.vertices, axis=0)[1] / np.ptp(turned.vertices, axis=0)[0], 0.5, atol=1e-4)


def test_texture_wins_over_black_kd_and_splits_large_faces(tmp_path):
    model = load_thing(tmp_path)
    green, yellow = faces_near(model, (0, 200, 0)), faces_near(model, (240, 220, 0))
    assert green.sum() > 1 and yellow.sum() > 1
    centres = model.vertices[model.faces].mean(axis=1)
    assert centres[green, 0].max() < 0.1 and centres[yellow, 0].min() > -0.1
    areas = face_areas(model.vertices, model.faces)
    assert areas[green].sum() == pytest.approx(areas[yellow].sum(), rel=0.15)


def test_largest_material_is_tintable(tmp_path):
    model = load_thing(tmp_path)
    assert not model.face_tintable[faces_near(model, (255, 0, 0))].any()
    assert model.face_tintable[faces_near(model, (0, 200, 0))].all()


def test_unreadable_model_is_left_out_and_named(tmp_path, caplog):
    write_catalogue(tmp_path / "test.sh3f", obj="v 0 0 0\n")
    assert list(iter_library(tmp_path, workers=1)) == [(None, 1)]
    assert "Test#thing" in caplog.text


def test_folder_without_catalogues_is_refused(tmp_path):
    with pytest.raises(UserError, match="no .sh3f catalogue"):
        find_catalogues(tmp_path)


def test_zip_without_catalogue_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.sh3f", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with zipfile.ZipFile(tmp_path / "bad.sh3f") as archive, pytest.raises(UserError, match="not a furniture catalogue"):
        read_catalogue(archive)


def test_obj_without_materials_gets_a_grey():
    mesh = read_obj("v 0 0 0\nv 1 0 0\nv 0 1 0\nmtllib gone.mtl\nusemtl unknown\nf -3 -2 -1\n", lambda name: None)
    assert mesh.faces.tolist() == [[0, 1, 2]]
    assert mesh.materials[mesh.face_materials[0]].diffuse == (0.75, 0.75, 0.75)


def test_opacity_from_d_or_tr():
    materials = read_mtl("newmtl a\nd 0.3\nTr 0.3\nnewmtl b\nTr 0.3\n")
    assert materials["a"].opacity == 0.3
    assert materials["b"].opacity == pytest.approx(0.7)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("flip", [False, True])
def test_concave_polygon_keeps_its_area(axis, flip):
    notched = np.array([[0, 0], [4, 0], [4, 3], [2, 1], [0, 3]], dtype=float)  # area 12 - 4 = 8
    notched = notched[::-1] if flip else notched
    points = np.insert(notched, axis, 0.5, axis=1)
    triangles = np.array(triangulate_polygon(np.roll(points, 2, axis=0)))
    assert triangles.shape == (3, 3)
    assert face_areas(np.roll(points, 2, axis=0), triangles).sum() == pytest.approx(8.0)
