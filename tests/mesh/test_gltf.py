"""The glTF writer, and the reader of what is rendered again."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from nerf_bridge.config import MeshConfig
from nerf_bridge.errors import UserError
from nerf_bridge.mesh.data import Asset, Material, UnwrappedMesh
from nerf_bridge.mesh.gltf import glb_file, gltf_files, load_textured_mesh
from nerf_bridge.mesh.texture_files import TextureFormat, side_stem
from nerf_bridge.mesh.write import write_asset
from nerf_bridge.scene.mesh_render import Texture

TEXTURE = np.arange(5 * 5 * 3, dtype=np.uint8).reshape(5, 5, 3)
NORMAL = np.full((5, 5, 3), (128, 128, 255), dtype=np.uint8)
METADATA = {"prompt": 'a "green" armchair, 椅子', "seed": 3, "prior": "oracle", "licence": None}


def triangle(normal: np.ndarray | None = None) -> Asset:
    mesh = UnwrappedMesh(
        vertices=np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0.1]]),
        normals=np.array([[0.0, 0, 1]] * 3),
        uv=np.array([[0.1, 0.2], [0.9, 0.2], [0.1, 0.7]]),
        faces=np.array([[0, 1, 2]]),
        method="grid",
    )
    return Asset(mesh, Material(TEXTURE, normal, 0.9, 0.25), METADATA)


def glb(asset: Asset, texture_format: TextureFormat = "png") -> bytes:
    return glb_file("a.glb", asset, texture_format)["a.glb"]


def parsed(data: bytes) -> tuple[dict, bytes]:
    magic, version, length = struct.unpack_from("<4sII", data, 0)
    assert (magic, version, length) == (b"glTF", 2, len(data)) and len(data) % 4 == 0
    n_json, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and n_json % 4 == 0
    n_binary, kind = struct.unpack_from("<I4s", data, 20 + n_json)
    assert kind == b"BIN\0" and n_binary % 4 == 0 and 28 + n_json + n_binary == len(data)
    return json.loads(data[20 : 20 + n_json]), data[28 + n_json :]


def array_of(document: dict, binary: bytes, attribute: str) -> np.ndarray:
    accessor = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"][attribute]]
    view = document["bufferViews"][accessor["bufferView"]]
    data = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
    return np.frombuffer(data, dtype="<f4").reshape(accessor["count"], -1)


def test_the_file_is_a_sound_glb() -> None:
    document, binary = parsed(glb(triangle()))
    assert document["asset"] == {"version": "2.0", "generator": "nerf_bridge", "extras": METADATA}
    assert document["buffers"] == [{"byteLength": len(binary)}]
    for view in document["bufferViews"]:
        assert view["byteOffset"] % 4 == 0 and view["byteOffset"] + view["byteLength"] <= len(binary)
    assert document["accessors"][1]["min"] == [0, 0, 0]
    assert document["accessors"][1]["max"] == [1, 1, float(np.float32(0.1))]
    (material,) = document["materials"]
    assert material["pbrMetallicRoughness"] == {
        "baseColorTexture": {"index": 0},
        "metallicFactor": 0.25,
        "roughnessFactor": 0.9,
    }
    assert "normalTexture" not in material and "extensionsUsed" not in document


def test_the_licence_is_told_where_viewers_look() -> None:
    document, _ = parsed(glb(replace(triangle(), metadata=METADATA | {"licence": "CC0"})))
    assert document["asset"]["copyright"] == "Made with the prior oracle, licence CC0"


def test_a_normal_map_comes_with_its_tangents() -> None:
    """u grows along x and v along y on this triangle."""
    document, binary = parsed(glb(triangle(NORMAL)))
    assert document["materials"][0]["normalTexture"] == {"index": 1} and len(document["images"]) == 2
    assert array_of(document, binary, "TANGENT") == pytest.approx(np.array([[1.0, 0, 0, 1]] * 3), abs=1e-6)


def test_webp_is_an_extension_that_readers_must_know() -> None:
    document, binary = parsed(glb(triangle(NORMAL), "webp"))
    assert document["extensionsUsed"] == document["extensionsRequired"] == ["EXT_texture_webp"]
    assert [texture["extensions"]["EXT_texture_webp"] for texture in document["textures"]] == [
        {"source": 0},
        {"source": 1},
    ]
    assert all("source" not in texture for texture in document["textures"])
    view = document["bufferViews"][document["images"][1]["bufferView"]]
    picture = Image.open(io.BytesIO(binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]))
    assert picture.format == "WEBP" and np.array_equal(np.asarray(picture), NORMAL)


@pytest.mark.parametrize("texture_format", ["png", "jpeg", "webp"])
def test_another_reader_finds_the_same_content(texture_format: TextureFormat) -> None:
    scene = trimesh.load(io.BytesIO(glb(triangle(NORMAL), texture_format)), file_type="glb")
    (mesh,) = scene.geometry.values()
    expected = triangle().mesh
    assert np.allclose(mesh.vertices, expected.vertices) and np.array_equal(mesh.faces, [[0, 1, 2]])
    assert np.allclose(mesh.visual.uv, expected.uv, atol=1e-6)
    error = np.abs(np.asarray(mesh.visual.material.baseColorTexture)[..., :3].astype(int) - TEXTURE).max()
    assert error <= {"png": 0, "jpeg": 8, "webp": 25}[texture_format]
    assert np.asarray(mesh.visual.material.normalTexture).shape == (5, 5, 3)
    assert np.allclose(mesh.vertex_normals, expected.normals)


def test_the_files_beside_a_gltf_are_named_after_it(tmp_path: Path) -> None:
    files = gltf_files("a 椅子.gltf", triangle(NORMAL), "jpeg")
    stem = side_stem("a 椅子.gltf")
    assert stem.startswith("a_椅子-")
    assert list(files) == [f"{stem}.bin", f"{stem}_gltf_base_color.jpg", f"{stem}_gltf_normal.jpg", "a 椅子.gltf"]
    document = json.loads(files["a 椅子.gltf"])
    assert [entry["uri"] for entry in (*document["buffers"], *document["images"])] == list(files)[:3]
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (mesh,) = trimesh.load(tmp_path / "a 椅子.gltf").geometry.values()
    assert np.allclose(mesh.vertices, triangle().mesh.vertices) and mesh.visual.material.normalTexture.size == (5, 5)


def test_it_loads_for_rendering_in_the_world_s_axes(tmp_path: Path) -> None:
    turned = replace(triangle().mesh, vertices=np.array([[0.0, 0, 0], [1, 0, 0], [0, -0.1, 1]]))
    write_asset(tmp_path / "a.glb", replace(triangle(), mesh=turned), MeshConfig())
    mesh = load_textured_mesh(tmp_path / "a.glb")
    low, high = mesh.vertices.amin(dim=0), mesh.vertices.amax(dim=0)
    assert torch.allclose(low, -high, atol=1e-6) and float((high - low).norm()) == pytest.approx(1.8)
    scale = float(mesh.vertices[1, 0] - mesh.vertices[0, 0])
    edges = (mesh.vertices[1:] - mesh.vertices[0]) / scale
    assert torch.allclose(edges, torch.tensor([[1.0, 0, 0], [0, -0.1, 1]]), atol=1e-6)  # up is z, front is -y
    assert isinstance(mesh.look, Texture)
    assert torch.allclose(mesh.look.uvs, torch.tensor(triangle().mesh.uv).float())
    assert torch.allclose(mesh.look.image, torch.tensor(TEXTURE) / 255)


def test_what_is_no_textured_mesh_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.glb").write_bytes(b"glTF and no more")
    trimesh.creation.box().export(tmp_path / "plain.glb")
    for name in ("broken.glb", "plain.glb", "absent.glb"):
        with pytest.raises(UserError, match=f"cannot read a mesh from .*{name}"):
            load_textured_mesh(tmp_path / name)
