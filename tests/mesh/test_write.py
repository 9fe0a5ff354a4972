"""Assets to files of every format, and what other readers find in them."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from cuboid import METADATA, SIDES, cuboid_asset
from PIL import Image
from pxr import Usd, UsdGeom, UsdShade

from nerf_bridge.config import MeshConfig
from nerf_bridge.errors import UserError
from nerf_bridge.mesh import usd, write
from nerf_bridge.mesh.texture_files import side_stem
from nerf_bridge.mesh.write import USUAL_UP, check_target, write_asset
from nerf_bridge.run import files as run_files

SETTINGS = MeshConfig(height_m=0.4)
SUFFIXES = list(USUAL_UP)


def to_world(points: np.ndarray, up: str) -> np.ndarray:
    """Points or directions [n, 3] of a file back in the world's axes."""
    return np.stack([points[:, 0], -points[:, 2], points[:, 1]], axis=1) if up == "y" else points


def side_of(normal: np.ndarray) -> tuple[int, int, int]:
    """The colour of the side whose outward normal in the world is `normal`."""
    axis = int(np.abs(normal).argmax())
    (color,) = [color for (k, sign, color) in SIDES.values() if k == axis and sign * normal[axis] > 0]
    return color


def read(path: Path) -> trimesh.Trimesh:
    (mesh,) = [part for part in trimesh.load_scene(path, process=False).dump() if isinstance(part, trimesh.Trimesh)]
    return mesh


@pytest.mark.parametrize("up", ["auto", "y", "z"])
@pytest.mark.parametrize("suffix", [".glb", ".gltf", ".obj", ".ply", ".stl"])
def test_trimesh_finds_the_same_bounds_faces_and_sides(suffix: str, up: str, tmp_path: Path) -> None:
    if up == "z" and suffix in (".glb", ".gltf"):
        with pytest.raises(UserError, match=r"mesh.up: y always points up in glTF, got z"):
            write_asset(tmp_path / f"a{suffix}", cuboid_asset(), SETTINGS.model_copy(update={"up": up}))
        return
    written = write_asset(tmp_path / f"a{suffix}", cuboid_asset(), SETTINGS.model_copy(update={"up": up}))
    mesh = read(tmp_path / f"a{suffix}")
    axis = USUAL_UP[suffix] if up == "auto" else up
    assert mesh.bounds == pytest.approx(np.array([written.vertices.min(axis=0), written.vertices.max(axis=0)]))
    in_world = to_world(np.asarray(mesh.vertices), axis)
    assert in_world.min(axis=0) == pytest.approx([-0.3, -0.1, 0], abs=1e-6)
    assert in_world.max(axis=0) == pytest.approx([0.3, 0.1, 0.4], abs=1e-6)
    assert len(mesh.faces) == 12
    welded = mesh.copy()
    welded.merge_vertices(merge_tex=True, merge_norm=True)
    assert len(welded.vertices) == 8 and welded.is_watertight and welded.volume == pytest.approx(0.6 * 0.2 * 0.4)


@pytest.mark.parametrize("suffix", [".glb", ".gltf", ".obj"])
@pytest.mark.parametrize("texture_format", ["png", "jpeg", "webp"])
def test_trimesh_finds_each_colour_on_its_side(suffix: str, texture_format: str, tmp_path: Path) -> None:
    settings = MeshConfig(texture_format=texture_format)
    write_asset(tmp_path / f"a{suffix}", cuboid_asset(), settings)
    mesh = read(tmp_path / f"a{suffix}")
    material = mesh.visual.material
    texture = np.asarray((material.image if suffix == ".obj" else material.baseColorTexture).convert("RGB"))
    uv = mesh.visual.uv[mesh.faces].mean(axis=1)
    seen = texture[((1 - uv[:, 1]) * len(texture)).astype(int), (uv[:, 0] * len(texture)).astype(int)]
    for color, normal in zip(seen, to_world(mesh.face_normals, "y"), strict=True):
        assert np.abs(color.astype(int) - side_of(normal)).max() <= (0 if texture_format == "png" else 6)


def test_a_ply_has_the_mean_colour_at_each_corner(tmp_path: Path) -> None:
    write_asset(tmp_path / "a.ply", cuboid_asset(), SETTINGS)
    mesh = read(tmp_path / "a.ply")
    index = int((mesh.vertices @ [-1, -1, 1]).argmax())
    expected = np.mean([SIDES[name][2] for name in ("-x", "-y", "+z")], axis=0)
    assert np.abs(mesh.visual.vertex_colors[index, :3] - expected).max() <= 1
    header = (tmp_path / "a.ply").read_bytes().split(b"end_header")[0].decode("ascii")
    assert 'comment prompt: "an \\"L\\", \\u00c4 \\u6905\\u5b50"\n' in header and "comment seed: 7\n" in header


def test_an_stl_can_be_in_millimetres_and_says_so(tmp_path: Path) -> None:
    write_asset(tmp_path / "a.stl", cuboid_asset(), SETTINGS.model_copy(update={"millimetres": True}))
    mesh = read(tmp_path / "a.stl")
    assert np.ptp(mesh.bounds, axis=0) == pytest.approx([600, 200, 400], abs=1e-3)
    header = (tmp_path / "a.stl").read_bytes()[:80]
    assert header.startswith(b'nerf_bridge;unit=mm;up=z;seed=7;prior=oracle;licence=Apache-2.0;prompt=an "L", ')
    written = np.frombuffer(
        (tmp_path / "a.stl").read_bytes()[84:], dtype=[("n", "<f4", 3), ("c", "<f4", 9), ("a", "<u2")]
    )
    assert np.allclose(written["n"], mesh.face_normals, atol=1e-6)


@pytest.mark.parametrize("up", ["y", "z"])
@pytest.mark.parametrize("texture_format", ["png", "jpeg"])
def test_usd_finds_the_same_in_a_usdz(texture_format: str, up: str, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"texture_format": texture_format, "up": up})
    write_asset(tmp_path / "a.usdz", cuboid_asset(), settings)
    stage = Usd.Stage.Open(str(tmp_path / "a.usdz"))
    assert UsdGeom.GetStageUpAxis(stage) == up.upper() and UsdGeom.GetStageMetersPerUnit(stage) == 1
    assert stage.GetRootLayer().customLayerData == {"generator": "nerf_bridge", **METADATA}
    (shape,) = [UsdGeom.Mesh(prim) for prim in stage.Traverse() if prim.IsA(UsdGeom.Mesh)]
    points = np.array(shape.GetPointsAttr().Get())
    faces = np.array(shape.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3)
    world = to_world(points, up)
    assert world.min(axis=0) == pytest.approx([-0.3, -0.1, 0]) and world.max(axis=0) == pytest.approx([0.3, 0.1, 0.4])
    assert np.array(shape.GetExtentAttr().Get()) == pytest.approx(np.array([points.min(axis=0), points.max(axis=0)]))
    mesh = trimesh.Trimesh(world, faces, process=False)
    assert len(points) == 8 and len(faces) == 12 and mesh.is_watertight and mesh.volume > 0
    st = np.array(UsdGeom.PrimvarsAPI(shape).GetPrimvar("st").ComputeFlattened()).reshape(-1, 3, 2).mean(axis=1)
    sampler = UsdShade.Shader(stage.GetPrimAtPath("/object/surface/base_color"))
    texture = picture_in(tmp_path / "a.usdz", sampler.GetInput("file").Get().path)
    seen = texture[((1 - st[:, 1]) * len(texture)).astype(int), (st[:, 0] * len(texture)).astype(int)]
    for color, normal in zip(seen, mesh.face_normals, strict=True):
        assert np.abs(color.astype(int) - side_of(normal)).max() <= (0 if texture_format == "png" else 6)


def picture_in(archive: Path, name: str) -> np.ndarray:
    with zipfile.ZipFile(archive) as opened:
        return np.asarray(Image.open(io.BytesIO(opened.read(name))))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_asset_gives_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    digests = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_asset(tmp_path / folder / f"a{suffix}", cuboid_asset(), SETTINGS)
        digests.append(
            {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / folder).iterdir()}
        )
    assert digests[0] == digests[1] and f"a{suffix}" in digests[0]


def test_the_files_beside_an_obj_are_named_after_it_without_spaces(tmp_path: Path) -> None:
    write_asset(tmp_path / "my chair.obj", cuboid_asset(), SETTINGS)
    names = {path.name for path in tmp_path.iterdir()}
    stem = side_stem("my chair.obj")
    color, normal = f"{stem}_obj_base_color.png", f"{stem}_obj_normal.png"
    assert stem.startswith("my_chair-") and names == {"my chair.obj", f"{stem}.mtl", color, normal}
    library = (tmp_path / f"{stem}.mtl").read_text()
    assert f"map_Kd {color}\nnorm {normal}\n" in library
    assert "Pr 0.4\nPm 0.25\n" in library and "# seed: 7\n" in library
    assert read(tmp_path / "my chair.obj").visual.material.image.size == (48, 48)


def test_all_formats_under_one_stem_keep_their_own_textures(tmp_path: Path) -> None:
    """Each format gets a red of its own; with the others beside it, every file still shows that one."""
    reds = {suffix: 40 * index for index, suffix in enumerate(SUFFIXES)}
    for suffix, red in reds.items():
        asset = cuboid_asset()
        color = np.full_like(asset.material.base_color, (red, 100, 50))
        write_asset(
            tmp_path / f"x{suffix}", replace(asset, material=replace(asset.material, base_color=color)), SETTINGS
        )
    for suffix in (".glb", ".gltf", ".obj"):
        material = read(tmp_path / f"x{suffix}").visual.material
        image = material.image if suffix == ".obj" else material.baseColorTexture
        assert np.asarray(image.convert("RGB"))[0, 0].tolist() == [reds[suffix], 100, 50], suffix
    assert picture_in(tmp_path / "x.usdz", "textures/base_color.png")[0, 0].tolist() == [reds[".usdz"], 100, 50]
    assert read(tmp_path / "x.ply").visual.vertex_colors[0, :3].tolist() == [reds[".ply"], 100, 50]
    assert len(read(tmp_path / "x.stl").faces) == 12


@pytest.mark.parametrize(("name", "beside"), [("w.obj", "w.mtl"), ("w.obj", "w_obj_normal.png"), ("w.gltf", "w.bin")])
def test_a_folder_where_a_side_file_goes_is_refused_and_stays(name: str, beside: str, tmp_path: Path) -> None:
    (tmp_path / beside).mkdir()
    (tmp_path / beside / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=f"{beside}, which belongs to it, is a folder"):
        check_target(tmp_path / name, SETTINGS)
    with pytest.raises(IsADirectoryError):
        write_asset(tmp_path / name, cuboid_asset(), SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == [beside]
    assert (tmp_path / beside / "mine.txt").read_text() == "mine"


def test_the_paths_checked_before_are_those_written(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        path = tmp_path / suffix[1:] / f"a b{suffix}"
        path.parent.mkdir()
        write_asset(path, cuboid_asset(), SETTINGS)
        assert {path, *write._side_paths(path, SETTINGS)} == set(path.parent.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_the_old_files_and_nothing_else(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_asset(tmp_path / f"a{suffix}", cuboid_asset(), SETTINGS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    room = iter(range(len(before) - 1))

    def fill_up(path: Path) -> None:
        if next(room, None) is None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_files, "sync", fill_up)
    with pytest.raises(OSError, match="No space left"):
        write_asset(tmp_path / f"a{suffix}", cuboid_asset(roughness=0.8), SETTINGS.model_copy(update={"height_m": 2.0}))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("asset.fbx", {}, "expected a name that ends in .glb, .gltf, .obj, .ply, .stl, .usdz"),
        ("asset", {}, "expected a name that ends in"),
        ("nowhere/asset.glb", {}, "there is no folder"),
        ("taken.glb", {}, "it is a folder"),
        ("a.gltf", {"up": "z"}, "mesh.up: y always points up in glTF"),
        ("a.glb", {"millimetres": True}, "mesh.millimetres: only STL"),
        ("a.usdz", {"texture_format": "webp"}, "mesh.texture_format: USDZ takes png or jpeg, got webp"),
    ],
)
def test_what_cannot_be_written_is_told_in_a_line(name: str, changes: dict, words: str, tmp_path: Path) -> None:
    (tmp_path / "taken.glb").mkdir()
    with pytest.raises(UserError, match=words) as told:
        check_target(tmp_path / name, MeshConfig(**changes))
    assert "\n" not in str(told.value)


def test_a_folder_without_the_right_to_write_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write.os, "access", lambda *_: False)
    with pytest.raises(UserError, match="cannot be written"):
        check_target(tmp_path / "a.glb", SETTINGS)


def test_without_usd_core_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usd.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"writing .*a.usdz needs the package usd-core: .*pip install"):
        check_target(tmp_path / "a.usdz", SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_faces_that_single_precision_cannot_tell_from_points_are_not_written(tmp_path: Path) -> None:
    asset = cuboid_asset()
    mesh = asset.mesh
    sliver = replace(
        mesh,
        vertices=np.concatenate([mesh.vertices, mesh.vertices[1:2] + [0, 1e-10, 0]]),
        normals=np.concatenate([mesh.normals, mesh.normals[:1]]),
        uv=np.concatenate([mesh.uv, mesh.uv[1:2]]),
        faces=np.concatenate([mesh.faces, [[0, 1, 24]]]),
    )
    written = write_asset(tmp_path / "a.glb", replace(asset, mesh=sliver), SETTINGS)
    assert len(written.faces) == len(read(tmp_path / "a.glb").faces) == 12
