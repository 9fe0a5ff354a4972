"""The GLB writer."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from nerf_bridge.errors import UserError
from nerf_bridge.mesh.data import UnwrappedMesh
from nerf_bridge.mesh.gltf import glb_bytes, load_textured_mesh, write_glb
from nerf_bridge.scene.mesh_render import Texture

TEXTURE = np.arange(5 * 5 * 3, dtype=np.uint8).reshape(5, 5, 3)
METADATA = {"prompt": 'a "green" armchair, 椅子', "seed": 3, "licence": None}


def triangle() -> UnwrappedMesh:
    return UnwrappedMesh(
        vertices=np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0.1]]),
        normals=np.array([[0.0, 0, 1]] * 3),
        uv=np.array([[0.1, 0.2], [0.9, 0.2], [0.1, 0.7]]),
        faces=np.array([[0, 1, 2]]),
        method="grid",
    )


def parsed(data: bytes) -> tuple[dict, bytes]:
    magic, version, length = struct.unpack_from("<4sII", data, 0)
    assert (magic, version, length) == (b"glTF", 2, len(data)) and len(data) % 4 == 0
    n_json, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and n_json % 4 == 0
    n_binary, kind = struct.unpack_from("<I4s", data, 20 + n_json)
    assert kind == b"BIN\0" and n_binary % 4 == 0 and 28 + n_json + n_binary == len(data)
    return json.loads(data[20 : 20 + n_json]), data[28 + n_json :]


def test_the_file_is_a_sound_glb() -> None:
    document, binary = parsed(glb_bytes(triangle(), TEXTURE, METADATA))
    assert document["asset"]["version"] == "2.0" and document["asset"]["extras"] == METADATA
    assert document["buffers"] == [{"byteLength": len(binary)}]
    for view in document["bufferViews"]:
        assert view["byteOffset"] % 4 == 0 and view["byteOffset"] + view["byteLength"] <= len(binary)
    assert document["accessors"][1]["min"] == [0, 0, 0]
    assert document["accessors"][1]["max"] == [1, 1, float(np.float32(0.1))]
    (material,) = document["materials"]
    assert material["pbrMetallicRoughness"] == {
        "baseColorTexture": {"index": 0},
        "metallicFactor": 0.0,
        "roughnessFactor": 0.9,
    }


def test_another_reader_finds_the_same_content() -> None:
    scene = trimesh.load(io.BytesIO(glb_bytes(triangle(), TEXTURE, METADATA)), file_type="glb")
    (mesh,) = scene.geometry.values()
    assert np.allclose(mesh.vertices, triangle().vertices) and np.array_equal(mesh.faces, [[0, 1, 2]])
    assert np.allclose(mesh.visual.uv, triangle().uv, atol=1e-6)
    assert np.array_equal(np.asarray(mesh.visual.material.baseColorTexture)[..., :3], TEXTURE)
    assert np.allclose(mesh.vertex_normals, triangle().normals)


def test_it_loads_for_rendering_in_the_world_s_axes(tmp_path: Path) -> None:
    write_glb(tmp_path / "a.glb", triangle(), TEXTURE, METADATA)
    mesh = load_textured_mesh(tmp_path / "a.glb")
    low, high = mesh.vertices.amin(dim=0), mesh.vertices.amax(dim=0)
    assert torch.allclose(low, -high, atol=1e-6) and float((high - low).norm()) == pytest.approx(1.8)
    scale = float(mesh.vertices[1, 0] - mesh.vertices[0, 0])
    edges = (mesh.vertices[1:] - mesh.vertices[0]) / scale
    assert torch.allclose(edges, torch.tensor([[1.0, 0, 0], [0, -0.1, 1]]), atol=1e-6)  # up is z, front is -y
    assert isinstance(mesh.look, Texture)
    assert torch.allclose(mesh.look.uvs, torch.tensor(triangle().uv).float())
    assert torch.allclose(mesh.look.image, torch.tensor(TEXTURE) / 255)


def test_what_is_no_textured_mesh_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.glb").write_bytes(b"glTF and no more")
    trimesh.creation.box().export(tmp_path / "plain.glb")
    for name in ("broken.glb", "plain.glb", "absent.glb"):
        with pytest.raises(UserError, match=f"cannot read a mesh from .*{name}"):
            load_textured_mesh(tmp_path / name)


def test_the_same_input_gives_the_same_bytes() -> None:
    assert glb_bytes(triangle(), TEXTURE, METADATA) == glb_bytes(triangle(), TEXTURE, METADATA)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "asset.glb"
    path.write_bytes(b"old")

    def disk_full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_glb(path, triangle(), TEXTURE, METADATA)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
