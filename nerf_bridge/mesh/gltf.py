"""One textured mesh as a GLB file (glTF 2.0, binary)."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import trimesh
from PIL import Image

from nerf_bridge.errors import UserError
from nerf_bridge.mesh.data import UnwrappedMesh
from nerf_bridge.run.files import write_bytes
from nerf_bridge.scene.mesh_render import ColoredMesh, Texture

WORLD_TO_GLTF = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""(x, y, z) -> (x, z, -y): z up and front -y become y up and front +z; a rotation, so nothing is mirrored."""
HALF_DIAGONAL = 0.9
"""Half the diagonal of a loaded object's bounding box, as of the embedded prior's objects."""
GENERATOR = "nerf_bridge"
ROUGHNESS = 0.9
FLOAT, UINT = 5126, 5125
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
LINEAR, LINEAR_MIPMAP_LINEAR, CLAMP_TO_EDGE = 9729, 9987, 33071


def write_glb(path: Path, mesh: UnwrappedMesh, texture: np.ndarray, metadata: Mapping[str, object]) -> None:
    """Write `mesh` with one PBR material to `path`, whole or not at all.

    Args:
        path: the .glb file; its folder must exist.
        mesh: vertices in metres, in glTF's axes (y up, front +z).
        texture: [h, w, 3] uint8 sRGB base colour, row 0 at v = 1.
        metadata: plain JSON values for `asset.extras`, for example prompt, seed, prior, licence.

    Raises:
        OSError: the file cannot be written; an old one stays as it was.
    """
    write_bytes(path, glb_bytes(mesh, texture, metadata))


def load_textured_mesh(path: Path) -> ColoredMesh:
    """Read a GLB with one textured mesh back for rendering.

    Returns:
        The mesh in the world's axes (z up, front -y), the middle of its bounding box at the origin, scaled so that half
        the box's diagonal is HALF_DIAGONAL; on the CPU.

    Raises:
        UserError: `path` cannot be read or holds no textured mesh.
    """
    try:
        meshes = [part for part in trimesh.load_scene(path).dump() if isinstance(part, trimesh.Trimesh)]
    except Exception as error:  # a broken file breaks its reader in any way
        raise UserError(f"cannot read a mesh from {path}: {error}") from None
    visual = meshes[0].visual if len(meshes) == 1 else None
    image = getattr(getattr(visual, "material", None), "baseColorTexture", None)
    if visual is None or image is None or visual.uv is None:
        raise UserError(f"cannot read a mesh from {path}: expected one mesh with a base colour texture")
    vertices = np.asarray(meshes[0].vertices) @ WORLD_TO_GLTF
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    placed = (vertices - (low + high) / 2) * (2 * HALF_DIAGONAL / np.linalg.norm(high - low))
    texture = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    look = Texture(torch.as_tensor(np.array(visual.uv)).float(), torch.as_tensor(texture))
    return ColoredMesh(torch.as_tensor(placed).float(), torch.as_tensor(np.array(meshes[0].faces)), look)


def glb_bytes(mesh: UnwrappedMesh, texture: np.ndarray, metadata: Mapping[str, object]) -> bytes:
    """The file's content; the same input gives the same bytes. Arguments as of `write_glb`."""
    uv = np.stack([mesh.uv[:, 0], 1.0 - mesh.uv[:, 1]], axis=1)
    arrays = [
        (mesh.faces.reshape(-1).astype("<u4"), "SCALAR", ELEMENT_ARRAY_BUFFER),
        (mesh.vertices.astype("<f4"), "VEC3", ARRAY_BUFFER),
        (mesh.normals.astype("<f4"), "VEC3", ARRAY_BUFFER),
        (uv.astype("<f4"), "VEC2", ARRAY_BUFFER),
    ]
    chunks = [array.tobytes() for array, _, _ in arrays] + [_png(texture)]
    views = _buffer_views(chunks, [target for _, _, target in arrays] + [None])
    accessors = [_accessor(index, array, kind) for index, (array, kind, _) in enumerate(arrays)]
    binary = b"".join(_padded(chunk, b"\0") for chunk in chunks)
    text = json.dumps(_document(views, accessors, len(binary), metadata), ensure_ascii=False, separators=(",", ":"))
    document = _padded(text.encode("utf-8"), b" ")
    length = 12 + 8 + len(document) + 8 + len(binary)
    return b"".join(
        [
            struct.pack("<4sII", b"glTF", 2, length),
            struct.pack("<I4s", len(document), b"JSON") + document,
            struct.pack("<I4s", len(binary), b"BIN\0") + binary,
        ]
    )


def _document(views: list[dict], accessors: list[dict], n_bytes: int, metadata: Mapping[str, object]) -> dict:
    attributes = {"POSITION": 1, "NORMAL": 2, "TEXCOORD_0": 3}
    surface = {"baseColorTexture": {"index": 0}, "metallicFactor": 0.0, "roughnessFactor": ROUGHNESS}
    return {
        "asset": {"version": "2.0", "generator": GENERATOR, "extras": dict(metadata)},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "object"}],
        "meshes": [{"name": "object", "primitives": [{"attributes": attributes, "indices": 0, "material": 0}]}],
        "materials": [{"name": "surface", "pbrMetallicRoughness": surface}],
        "textures": [{"source": 0, "sampler": 0}],
        "images": [{"name": "base_color", "bufferView": len(views) - 1, "mimeType": "image/png"}],
        "samplers": [
            {"magFilter": LINEAR, "minFilter": LINEAR_MIPMAP_LINEAR, "wrapS": CLAMP_TO_EDGE, "wrapT": CLAMP_TO_EDGE}
        ],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": n_bytes}],
    }


def _accessor(index: int, array: np.ndarray, kind: str) -> dict:
    accessor = {
        "bufferView": index,
        "componentType": UINT if array.dtype.kind == "u" else FLOAT,
        "count": len(array),
        "type": kind,
    }
    if kind == "VEC3":
        accessor |= {"min": array.min(axis=0).tolist(), "max": array.max(axis=0).tolist()}
    return accessor


def _buffer_views(chunks: list[bytes], targets: list[int | None]) -> list[dict]:
    """Where each chunk lies when they follow each other, each padded to 4 bytes."""
    views, offset = [], 0
    for chunk, target in zip(chunks, targets, strict=True):
        view = {"buffer": 0, "byteOffset": offset, "byteLength": len(chunk)}
        views.append(view if target is None else {**view, "target": target})
        offset += -(-len(chunk) // 4) * 4
    return views


def _padded(chunk: bytes, filler: bytes) -> bytes:
    return chunk + filler * (-len(chunk) % 4)


def _png(texture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(texture).save(stream, format="PNG")
    return stream.getvalue()
