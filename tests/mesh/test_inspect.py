"""What `inspect` finds, and what it calls sound."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from cuboid import cuboid_asset
from pxr import Gf, Sdf, Usd, UsdGeom, UsdShade

from nerf_bridge.config import MeshConfig
from nerf_bridge.mesh.data import Mesh
from nerf_bridge.mesh.inspect import format_inspection, inspect_file, inspection_record, surface_topology
from nerf_bridge.mesh.read_gltf import read_document
from nerf_bridge.mesh.write import USUAL_UP, write_asset

BOX = trimesh.creation.box()
CUBE = Mesh(np.array(BOX.vertices, dtype=np.float64), np.array(BOX.faces, dtype=np.int64))


@pytest.mark.parametrize("suffix", USUAL_UP)
def test_our_files_are_sound(suffix: str, tmp_path: Path) -> None:
    write_asset(tmp_path / f"a{suffix}", cuboid_asset(), MeshConfig(height_m=0.4))
    found = inspect_file(tmp_path / f"a{suffix}")
    assert found.sound and found.problems == ()
    assert (found.faces, found.topology.points, found.topology.bodies) == (12, 8, 1)
    assert found.topology.watertight and found.topology.manifold
    assert found.topology.volume == pytest.approx(0.6 * 0.2 * 0.4)
    record = json.loads(json.dumps(inspection_record(found)))
    size = [0.6, 0.4, 0.2] if found.up == "y" else [0.6, 0.2, 0.4]
    assert record["size_m"] == pytest.approx(size, rel=1e-5) and record["sound"] and record["watertight"]
    assert format_inspection(found).splitlines()[-1].split() == ["verdict", "sound"]


def test_the_size_is_in_metres_whatever_the_unit(tmp_path: Path) -> None:
    write_asset(tmp_path / "a.stl", cuboid_asset(), MeshConfig(height_m=0.4, millimetres=True))
    found = inspect_file(tmp_path / "a.stl")
    assert inspection_record(found)["size_m"] == pytest.approx([0.6, 0.2, 0.4])
    assert "0.6 x 0.2 x 0.4 m" in format_inspection(found) and " mm\n" in format_inspection(found)


def test_a_table_for_people_names_everything(tmp_path: Path) -> None:
    write_asset(tmp_path / "a.glb", cuboid_asset(), MeshConfig(texture_format="webp"))
    text = format_inspection(inspect_file(tmp_path / "a.glb"))
    for words in ("24 (8 points, seams welded)", "baseColor: base_color, 48 x 48 WEBP", "surface", "says prompt"):
        assert words in text


def changed(faces: np.ndarray, vertices: np.ndarray = CUBE.vertices) -> Mesh:
    return Mesh(vertices, faces)


def test_a_cube_is_closed_and_each_damage_is_counted() -> None:
    whole = surface_topology(CUBE)
    assert whole.watertight and whole.manifold and whole.volume == pytest.approx(1)
    assert surface_topology(changed(CUBE.faces[1:])).open_edges == 3
    turned = np.concatenate([CUBE.faces[:1, ::-1], CUBE.faces[1:]])
    assert surface_topology(changed(turned)).twisted_edges == 3
    double = surface_topology(changed(np.concatenate([CUBE.faces, CUBE.faces[:1]])))
    assert double.duplicate_faces == 1 and double.crowded_edges == 3 and not double.manifold
    assert surface_topology(changed(np.concatenate([CUBE.faces, [[0, 0, 1]]]))).degenerate_faces == 1
    assert surface_topology(changed(CUBE.faces[:, ::-1])).volume == pytest.approx(-1)


def test_a_face_on_a_line_has_no_area() -> None:
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [0, 1, 0]])
    found = surface_topology(Mesh(vertices, np.array([[0, 1, 2], [0, 2, 3]])))
    assert found.degenerate_faces == 1 and found.open_edges == 4


def test_bodies_that_touch_in_a_point_are_two_and_not_manifold() -> None:
    second = CUBE.vertices + 1.0
    touching = Mesh(np.concatenate([CUBE.vertices, second]), np.concatenate([CUBE.faces, CUBE.faces + 8]))
    found = surface_topology(touching)
    assert (found.bodies, found.pinched_points, found.points) == (2, 1, 15)
    assert found.watertight and not found.manifold
    apart = Mesh(np.concatenate([CUBE.vertices, second + 1]), touching.faces)
    assert surface_topology(apart).bodies == 2 and surface_topology(apart).manifold


def problems_of(path: Path) -> str:
    found = inspect_file(path)
    assert not found.sound and format_inspection(found).splitlines()[-1].split() == ["verdict", "not", "sound"]
    return "; ".join(found.problems)


def test_open_and_inverted_files_are_not_sound(tmp_path: Path) -> None:
    opened = BOX.copy()
    opened.update_faces(np.arange(12) > 0)
    opened.export(tmp_path / "open.ply")
    assert problems_of(tmp_path / "open.ply") == "3 edges belong to one face only: the surface is open"
    inverted = BOX.copy()
    inverted.invert()
    inverted.export(tmp_path / "inverted.stl")
    assert problems_of(tmp_path / "inverted.stl") == "the faces look inward"


def test_wrong_textures_are_not_sound(tmp_path: Path) -> None:
    asset = cuboid_asset()
    write_asset(tmp_path / "a.obj", replace(asset, mesh=replace(asset.mesh, uv=asset.mesh.uv * 3)), MeshConfig())
    (tmp_path / "a_obj_normal.png").write_bytes(b"")
    words = problems_of(tmp_path / "a.obj")
    assert "texture coordinates leave 0 to 1: 0.2 to 2.8" in words and "norm 'a_obj_normal.png' cannot be read" in words


def test_numbers_that_are_none_are_not_sound(tmp_path: Path) -> None:
    vertices = "\n".join(
        "v nan 0 0" if k == 0 else "v {} {} {}".format(*point) for k, point in enumerate(CUBE.vertices)
    )
    faces = "\n".join("f {} {} {}".format(*(face + 1)) for face in CUBE.faces)
    (tmp_path / "a.obj").write_text(f"{vertices}\n{faces}\n")
    assert "1 vertices are not finite" in problems_of(tmp_path / "a.obj")


def joined(*meshes: trimesh.Trimesh) -> Mesh:
    whole = trimesh.util.concatenate(list(meshes))
    return Mesh(np.array(whole.vertices), np.array(whole.faces, dtype=np.int64))


def turned(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    mesh.invert()
    return mesh


def test_each_body_is_outward_but_a_cavity(tmp_path: Path) -> None:
    small = trimesh.creation.icosphere(radius=0.3)
    cavity = surface_topology(joined(BOX, turned(small.copy())))
    assert (cavity.bodies, cavity.inward_bodies) == (2, 0)
    beside = turned(small.copy()).apply_translation((2, 0, 0))
    assert surface_topology(joined(BOX, beside)).inward_bodies == 1
    trimesh.util.concatenate([BOX, beside]).export(tmp_path / "a.stl")
    assert problems_of(tmp_path / "a.stl") == "1 of 2 bodies are inside out"
    corner = turned(small.copy()).apply_translation((0.9, 0.9, 0.9))  # in the sphere's bounds, but not in it
    assert surface_topology(joined(trimesh.creation.icosphere(radius=1), corner)).inward_bodies == 1
    nested = turned(trimesh.creation.icosphere(radius=0.4))
    assert surface_topology(joined(BOX, nested, small, turned(trimesh.creation.box((0.1,) * 3)))).inward_bodies == 0


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".usdz"])
def test_normals_that_are_wrong_are_not_sound(suffix: str, tmp_path: Path) -> None:
    asset = cuboid_asset()
    inverted = replace(asset.mesh, normals=-asset.mesh.normals)
    write_asset(tmp_path / f"a{suffix}", replace(asset, mesh=inverted), MeshConfig())
    assert "the normals look away from the faces" in problems_of(tmp_path / f"a{suffix}")


def test_normals_that_are_not_finite_are_not_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.glb"
    write_asset(path, cuboid_asset(), MeshConfig())
    document, binary = read_document(path)
    accessor = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["NORMAL"]]
    data = bytearray(path.read_bytes())
    start = len(data) - len(binary) + document["bufferViews"][accessor["bufferView"]]["byteOffset"]
    data[start : start + 4] = struct.pack("<f", math.nan)
    path.write_bytes(data)
    assert "faces have normals that are not finite" in problems_of(path)


def test_normals_of_a_mirrored_part_are_right(tmp_path: Path) -> None:
    ball = trimesh.creation.icosphere()
    assert ball.vertex_normals is not None
    scene = trimesh.Scene()
    scene.add_geometry(ball, transform=np.diag([-1.0, 2, 1, 1]))
    scene.export(tmp_path / "a.glb", include_normals=True)
    assert inspect_file(tmp_path / "a.glb").problems == ()


def uv_changed(uv: np.ndarray, path: Path) -> Path:
    asset = cuboid_asset()
    write_asset(path, replace(asset, mesh=replace(asset.mesh, uv=uv)), MeshConfig())
    return path


def test_coordinates_that_are_none_or_all_the_same_are_not_sound(tmp_path: Path) -> None:
    uv = cuboid_asset().mesh.uv
    assert "the texture coordinates are all the same" in problems_of(uv_changed(uv * 0 + 0.5, tmp_path / "a.obj"))
    uv_changed(uv, tmp_path / "a.obj")
    text = (tmp_path / "a.obj").read_text()
    first = next(line for line in text.splitlines() if line.startswith("vt "))
    (tmp_path / "a.obj").write_text(text.replace(first, "vt nan 0.5", 1))
    assert "texture coordinates are not finite" in problems_of(tmp_path / "a.obj")


def test_tiled_textures_of_other_people_are_a_note(tmp_path: Path) -> None:
    path = uv_changed(cuboid_asset().mesh.uv * 3, tmp_path / "a.gltf")
    assert "texture coordinates leave 0 to 1" in problems_of(path)
    document = json.loads(path.read_text())
    document["asset"]["generator"] = "x"
    path.write_text(json.dumps(document))
    found = inspect_file(path)
    assert found.sound and found.notes == ("texture coordinates leave 0 to 1: 0.2 to 2.8 (tiled?)",)
    assert "note" in format_inspection(found) and inspection_record(found)["notes"]


def test_what_is_not_checked_is_named(tmp_path: Path) -> None:
    BOX.export(tmp_path / "a.stl")
    found = inspect_file(tmp_path / "a.stl")
    assert "not checked" in format_inspection(found) and "self-intersection" in format_inspection(found)
    assert inspection_record(found)["not_checked"] == ["self-intersection"]


@pytest.mark.parametrize("change", ["index", "source", "no source", "no images", "no view"])
def test_pictures_that_a_gltf_names_but_lacks_are_not_sound(change: str, tmp_path: Path) -> None:
    write_asset(tmp_path / "a.gltf", cuboid_asset(), MeshConfig())
    document = json.loads((tmp_path / "a.gltf").read_text())
    match change:
        case "index":
            document["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]["index"] = 9
        case "source":
            document["textures"][0]["source"] = -1
        case "no source":
            del document["textures"][0]["source"]
        case "no images":
            del document["images"]
        case "no view":
            document["images"][0] = {"name": "base"}
    (tmp_path / "a.gltf").write_text(json.dumps(document))
    assert "baseColor" in problems_of(tmp_path / "a.gltf") and "cannot be read" in problems_of(tmp_path / "a.gltf")


def plate(path: Path) -> Usd.Stage:
    stage = Usd.Stage.CreateNew(str(path))
    shape = UsdGeom.Mesh.Define(stage, "/plate")
    shape.CreatePointsAttr([(0, 0, 0), (1, 0, 0), (0, 1, 0)])
    shape.CreateFaceVertexCountsAttr([3])
    shape.CreateFaceVertexIndicesAttr([0, 1, 2])
    return stage


def test_a_usd_picture_that_is_gone_is_not_sound(tmp_path: Path) -> None:
    stage = plate(tmp_path / "a.usda")
    shader = UsdShade.Shader.Define(stage, "/surface/preview")
    given = shader.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f)
    given.GetAttr().AddConnection("/surface/gone.outputs:rgb")
    stage.GetRootLayer().Save()
    assert "diffuseColor '/surface/gone.outputs:rgb' cannot be read" in problems_of(tmp_path / "a.usda")


def test_json_is_plain_whatever_the_file_says(tmp_path: Path) -> None:
    stage = plate(tmp_path / "a.usda")
    stage.GetRootLayer().customLayerData = {"size": Gf.Vec3f(1, 2, 3), "score": float("nan"), "in": {"a": True}}
    stage.GetRootLayer().Save()
    record = json.loads(json.dumps(inspection_record(inspect_file(tmp_path / "a.usda")), allow_nan=False))
    assert record["metadata"] == {"size": [1, 2, 3], "score": None, "in": {"a": True}}


def test_a_single_face_that_is_nowhere_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    assert "1 vertices are not finite" in problems_of(tmp_path / "a.obj")
    json.dumps(inspection_record(inspect_file(tmp_path / "a.obj")), allow_nan=False)


def test_near_points_are_one_wherever_they_lie() -> None:
    """Each corner of a soup is off by a last bit of single precision: wherever cubes begin, some lie on both sides."""
    ball = trimesh.creation.icosphere(subdivisions=3)
    corners = ball.vertices[ball.faces].reshape(-1, 3).astype(np.float32)
    steps = np.random.default_rng(0).integers(-1, 2, corners.shape)
    soup = (corners + steps * np.spacing(corners)).astype(np.float64)
    found = surface_topology(Mesh(soup, np.arange(len(soup)).reshape(-1, 3)))
    assert found.watertight and found.manifold and found.points == len(ball.vertices)


def test_points_far_out_do_not_make_welding_slow() -> None:
    ball = trimesh.creation.icosphere(subdivisions=5)
    vertices = np.concatenate([ball.vertices, [[1e12, 0, 0]]])
    assert surface_topology(Mesh(vertices, np.array(ball.faces))).points <= 2
