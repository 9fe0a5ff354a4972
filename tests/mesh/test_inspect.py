"""What `inspect` finds, and what it calls sound."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from cuboid import cuboid_asset

from nerf_bridge.config import MeshConfig
from nerf_bridge.mesh.data import Mesh
from nerf_bridge.mesh.inspect import format_inspection, inspect_file, inspection_record, surface_topology
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
    (tmp_path / "a_normal.png").write_bytes(b"")
    words = problems_of(tmp_path / "a.obj")
    assert "texture coordinates leave 0 to 1: 0.2 to 2.8" in words and "norm 'a_normal.png' cannot be read" in words


def test_numbers_that_are_none_are_not_sound(tmp_path: Path) -> None:
    vertices = "\n".join(
        "v nan 0 0" if k == 0 else "v {} {} {}".format(*point) for k, point in enumerate(CUBE.vertices)
    )
    faces = "\n".join("f {} {} {}".format(*(face + 1)) for face in CUBE.faces)
    (tmp_path / "a.obj").write_text(f"{vertices}\n{faces}\n")
    assert "1 vertices are not finite" in problems_of(tmp_path / "a.obj")
