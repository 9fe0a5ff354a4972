"""Mesh files of all kinds, read."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from cuboid import METADATA, cuboid_asset
from PIL import Image
from pxr import Gf, Usd, UsdGeom

from nerf_bridge.config import MeshConfig
from nerf_bridge.errors import UserError
from nerf_bridge.mesh import usd
from nerf_bridge.mesh.mesh_file import FoundTexture
from nerf_bridge.mesh.read import read_mesh
from nerf_bridge.mesh.write import USUAL_UP, write_asset


@pytest.mark.parametrize("suffix", USUAL_UP)
def test_what_we_write_is_read(suffix: str, tmp_path: Path) -> None:
    written = write_asset(tmp_path / f"a b{suffix}", cuboid_asset(), MeshConfig(height_m=0.4))
    found = read_mesh(tmp_path / f"a b{suffix}")
    low, high = found.vertices[found.faces].min(axis=(0, 1)), found.vertices[found.faces].max(axis=(0, 1))
    assert low == pytest.approx(written.vertices.min(axis=0)) and high == pytest.approx(written.vertices.max(axis=0))
    assert len(found.faces) == 12 and found.up == USUAL_UP[suffix] and found.metres == 1
    said = {key: value for key, value in found.metadata.items() if key in METADATA}
    if suffix == ".stl":  # has room for little, and that as text
        assert said["seed"] == "7" and str(said["prompt"]).startswith('an "L"')
    else:
        assert said == METADATA
    roles = [(texture.width, texture.height, texture.format) for texture in found.textures]
    assert roles == ([] if suffix in (".ply", ".stl") else [(48, 48, "PNG")] * 2)
    assert (found.uv is None) == (not roles) and found.vertex_colors == (suffix == ".ply")
    assert found.materials == (("surface",) if roles else ())
    if found.uv is not None:
        assert found.uv.min() == pytest.approx(0.2 / 3) and found.uv.max() == pytest.approx(2.8 / 3)


def test_millimetres_are_known(tmp_path: Path) -> None:
    write_asset(tmp_path / "a.stl", cuboid_asset(), MeshConfig(height_m=0.4, millimetres=True))
    found = read_mesh(tmp_path / "a.stl")
    assert found.metres == 0.001 and np.ptp(found.vertices[:, 2]) == pytest.approx(400, rel=1e-6)


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply", ".stl", ".off"])
def test_other_people_s_files_are_read_and_say_nothing_of_axes(suffix: str, tmp_path: Path) -> None:
    trimesh.creation.box((1, 2, 3)).export(tmp_path / f"a{suffix}")
    found = read_mesh(tmp_path / f"a{suffix}")
    assert len(found.faces) == 12 and np.ptp(found.vertices, axis=0) == pytest.approx([1, 2, 3])
    assert (found.up, found.metres) == (("y", 1.0) if suffix == ".glb" else (None, None))
    assert found.textures == () and found.uv is None


def test_parts_of_a_scene_stand_where_they_are_placed(tmp_path: Path) -> None:
    scene = trimesh.Scene()
    for offset in (0.0, 5.0):
        scene.add_geometry(trimesh.creation.box(), transform=trimesh.transformations.translation_matrix((offset, 0, 0)))
    scene.export(tmp_path / "a.glb")
    found = read_mesh(tmp_path / "a.glb")
    assert len(found.faces) == 24 and np.ptp(found.vertices, axis=0) == pytest.approx([6, 1, 1])


def test_embedded_and_missing_pictures_of_a_gltf(tmp_path: Path) -> None:
    write_asset(tmp_path / "a.gltf", cuboid_asset(), MeshConfig())
    document = json.loads((tmp_path / "a.gltf").read_text())
    stream = io.BytesIO()
    Image.new("RGB", (3, 2)).save(stream, format="JPEG")
    document["images"][0]["uri"] = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
    (tmp_path / "a.gltf").write_text(json.dumps(document))
    (tmp_path / "a_gltf_normal.png").write_bytes(b"no picture")
    assert read_mesh(tmp_path / "a.gltf").textures == (
        FoundTexture("baseColor", "embedded", 3, 2, "JPEG"),
        FoundTexture("normal", "a_gltf_normal.png", 0, 0, ""),
    )
    (tmp_path / "a_gltf_normal.png").unlink()
    assert read_mesh(tmp_path / "a.gltf").textures[1] == FoundTexture("normal", "a_gltf_normal.png", 0, 0, "")


def test_missing_pictures_and_libraries_of_an_obj(tmp_path: Path) -> None:
    write_asset(tmp_path / "a.obj", cuboid_asset(), MeshConfig())
    (tmp_path / "a_obj_base_color.png").unlink()
    assert read_mesh(tmp_path / "a.obj").textures[0] == FoundTexture("map_Kd", "a_obj_base_color.png", 0, 0, "")
    (tmp_path / "a.mtl").unlink()
    assert read_mesh(tmp_path / "a.obj").textures == (FoundTexture("mtllib", "a.mtl", 0, 0, ""),)


def test_a_usd_stage_with_quads_instances_of_size_and_other_units(tmp_path: Path) -> None:
    stage = Usd.Stage.CreateNew(str(tmp_path / "a.usda"))
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z)
    UsdGeom.SetStageMetersPerUnit(stage, 0.01)
    shape = UsdGeom.Mesh.Define(stage, "/plate")
    shape.CreatePointsAttr([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)])
    shape.CreateFaceVertexCountsAttr([4])
    shape.CreateFaceVertexIndicesAttr([0, 1, 2, 3])
    shape.CreateOrientationAttr(UsdGeom.Tokens.leftHanded)
    shape.AddTranslateOp().Set(Gf.Vec3d(0, 0, 2))
    shape.AddScaleOp().Set(Gf.Vec3f(3, 1, 1))
    stage.GetRootLayer().Save()
    found = read_mesh(tmp_path / "a.usda")
    assert (found.up, found.metres, len(found.faces)) == ("z", 0.01, 2)
    assert found.vertices.min(axis=0).tolist() == [0, 0, 2] and found.vertices.max(axis=0).tolist() == [3, 1, 2]
    corners = found.vertices[found.faces]
    assert (np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:, 2] < 0).all()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.glb", None, "there is no such file"),
        ("folder.glb", "", "it is a folder"),
        ("a.fbx", b"x", "expected a name that ends in .glb, "),
        ("a.glb", b"glTF", "cannot read a mesh"),
        ("a.gltf", b"[1]", "cannot read a mesh"),
        ("a.ply", b"ply\nformat ascii 1.0\nend_header\n", "it holds no triangles|cannot read"),
        ("a.stl", b"", "cannot read a mesh"),
        ("a.obj", b"v 1 2 3\n", "cannot read a mesh"),
        ("a.usdz", b"PK no archive", "it is damaged: Failed to open layer"),
        ("b.glb", b"", "it is empty"),
        ("b.usdz", b"", "it is empty"),
        ("b.glb", b"glTF" + bytes(6), "it is damaged: it ends after 10 bytes, within its header"),
        ("b.glb", b"glTF" + (2).to_bytes(4, "little") + (99).to_bytes(4, "little") + bytes(8), "after 20 of 99 bytes"),
        ("b.gltf", b"[1]", "it is damaged: it is no glTF"),
        ("b.stl", bytes(40), "it is damaged: it ends after 40 bytes, within its header"),
        ("b.stl", bytes(80) + (9).to_bytes(4, "little") + bytes(50), "it is damaged: it ends after 134 of 534 bytes"),
        ("b.obj", b"v 1 2 3\nv 1 2 4\nf 1 2 9\n", "it is damaged: something in it names what is not there"),
    ],
)
def test_what_cannot_be_read_is_told_in_a_line(
    name: str, content: bytes | str | None, words: str, tmp_path: Path
) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=words) as told:
        read_mesh(tmp_path / name)
    assert name in str(told.value) and "\n" not in str(told.value) and "pxrInternal" not in str(told.value)


@pytest.mark.parametrize(
    ("counts", "indices", "words"),
    [([3], [0, 1, 9], "a face names vertex 9 of 3"), ([4], [0, 1, 2], "its polygons have 4 corners, but 3 are listed")],
)
def test_damaged_usd_faces_are_told_in_a_line(
    counts: list[int], indices: list[int], words: str, tmp_path: Path
) -> None:
    stage = Usd.Stage.CreateNew(str(tmp_path / "a.usda"))
    shape = UsdGeom.Mesh.Define(stage, "/plate")
    shape.CreatePointsAttr([(0, 0, 0), (1, 0, 0), (1, 1, 0)])
    shape.CreateFaceVertexCountsAttr(counts)
    shape.CreateFaceVertexIndicesAttr(indices)
    stage.GetRootLayer().Save()
    with pytest.raises(UserError, match=words):
        read_mesh(tmp_path / "a.usda")


def test_a_mirrored_usd_mesh_is_not_inside_out(tmp_path: Path) -> None:
    stage = Usd.Stage.CreateNew(str(tmp_path / "a.usda"))
    box = trimesh.creation.box()
    shape = UsdGeom.Mesh.Define(stage, "/box")
    shape.CreatePointsAttr(box.vertices.tolist())
    shape.CreateFaceVertexCountsAttr([3] * 12)
    shape.CreateFaceVertexIndicesAttr(box.faces.reshape(-1).tolist())
    shape.AddScaleOp().Set(Gf.Vec3f(-1, 1, 1))
    stage.GetRootLayer().Save()
    found = read_mesh(tmp_path / "a.usda")
    assert trimesh.Trimesh(found.vertices, found.faces, process=False).volume == pytest.approx(1)


def test_without_usd_core_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_asset(tmp_path / "a.usdz", cuboid_asset(), MeshConfig())
    monkeypatch.setattr(usd.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"reading .*a.usdz needs the package usd-core: .*pip install"):
        read_mesh(tmp_path / "a.usdz")
