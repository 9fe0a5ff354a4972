"""One textured mesh as glTF 2.0: a single GLB file, or a .gltf file with its buffer and textures beside it."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nerf_bridge.errors import UserError
from nerf_bridge.mesh.data import Asset, Material
from nerf_bridge.mesh.normal_map import vertex_tangents
from nerf_bridge.mesh.placement import WORLD_TO_Y_UP
from nerf_bridge.mesh.texture_files import TextureFile, TextureFormat, encode_material, side_name, side_stem
from nerf_bridge.scene.mesh_render import ColoredMesh, Texture

HALF_DIAGONAL = 0.9
"""Half the diagonal of a loaded object's bounding box, as of the embedded prior's objects."""
GENERATOR = "nerf_bridge"
WEBP = "EXT_texture_webp"
FLOAT, UINT = 5126, 5125
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
LINEAR, LINEAR_MIPMAP_LINEAR, CLAMP_TO_EDGE = 9729, 9987, 33071


@dataclass(frozen=True)
class _Buffer:
    """The binary part: its content, what lies where in it, and the accessors of the mesh's arrays."""

    data: bytes
    views: list[dict]
    accessors: list[dict]


def glb_file(name: str, asset: Asset, texture_format: TextureFormat) -> dict[str, bytes]:
    """A GLB with one PBR material; the same input gives the same bytes.

    Args:
        name: of the file.
        asset: vertices in metres, in glTF's axes (y up, front +z); the metadata becomes `asset.extras`.
        texture_format: WebP makes the file ask for readers that know EXT_texture_webp. It has no second copy of the
            textures for others: they would be most of the file, and PNG and JPEG are there for those readers.

    Returns:
        The file's content under its name.
    """
    textures = encode_material(asset.material, texture_format)
    buffer = _buffer(asset, textures)
    n_arrays = len(buffer.accessors)
    images = [
        {"name": texture.role, "bufferView": n_arrays + index, "mimeType": texture.mime}
        for index, texture in enumerate(textures)
    ]
    text = _json(_document(asset, buffer, {"byteLength": len(buffer.data)}, images, texture_format))
    document = _padded(text, b" ")
    length = 12 + 8 + len(document) + 8 + len(buffer.data)
    parts = [
        struct.pack("<4sII", b"glTF", 2, length),
        struct.pack("<I4s", len(document), b"JSON") + document,
        struct.pack("<I4s", len(buffer.data), b"BIN\0") + buffer.data,
    ]
    return {name: b"".join(parts)}


def gltf_files(name: str, asset: Asset, texture_format: TextureFormat) -> dict[str, bytes]:
    """A .gltf file, its .bin and its textures, named after it, the .gltf file last. Arguments as of `glb_file`."""
    stem = side_stem(name)
    textures = encode_material(asset.material, texture_format)
    buffer = _buffer(asset, [])
    images = [{"name": texture.role, "uri": side_name(name, texture.role, texture.suffix)} for texture in textures]
    described = {"byteLength": len(buffer.data), "uri": f"{stem}.bin"}
    document = _json(_document(asset, buffer, described, images, texture_format))
    sides = {side_name(name, texture.role, texture.suffix): texture.data for texture in textures}
    return {f"{stem}.bin": buffer.data, **sides, name: document}


def load_textured_mesh(path: Path) -> ColoredMesh:
    """Read a GLB with one textured mesh back for rendering.

    Returns:
        The mesh in the world's axes (z up, front -y), the middle of its bounding box at the origin, scaled so that half
        the box's diagonal is HALF_DIAGONAL; on the CPU.

    Raises:
        UserError: `path` cannot be read or holds no textured mesh.
    """
    import trimesh  # takes half a second to load, and only reading needs it

    try:
        meshes = [part for part in trimesh.load_scene(path).dump() if isinstance(part, trimesh.Trimesh)]
    except Exception as error:  # a broken file breaks its reader in any way
        raise UserError(f"cannot read a mesh from {path}: {error}") from None
    visual = meshes[0].visual if len(meshes) == 1 else None
    image = getattr(getattr(visual, "material", None), "baseColorTexture", None)
    if visual is None or image is None or visual.uv is None:
        raise UserError(f"cannot read a mesh from {path}: expected one mesh with a base colour texture")
    vertices = np.asarray(meshes[0].vertices) @ WORLD_TO_Y_UP
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    placed = (vertices - (low + high) / 2) * (2 * HALF_DIAGONAL / np.linalg.norm(high - low))
    texture = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    look = Texture(torch.as_tensor(np.array(visual.uv)).float(), torch.as_tensor(texture))
    return ColoredMesh(torch.as_tensor(placed).float(), torch.as_tensor(np.array(meshes[0].faces)), look)


def _document(
    asset: Asset, buffer: _Buffer, described: dict, images: list[dict], texture_format: TextureFormat
) -> dict:
    """The JSON; `described` is its entry for the buffer, `images` those for the base colour and the normal map."""
    attributes = {"POSITION": 1, "NORMAL": 2, "TEXCOORD_0": 3}
    if asset.material.normal is not None:
        attributes["TANGENT"] = 4
    document: dict[str, object] = {
        "asset": _asset_entry(asset.metadata),
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "object"}],
        "meshes": [{"name": "object", "primitives": [{"attributes": attributes, "indices": 0, "material": 0}]}],
        "materials": [_material_entry(asset.material)],
        "textures": [_texture_entry(index, texture_format) for index in range(len(images))],
        "images": images,
        "samplers": [
            {"magFilter": LINEAR, "minFilter": LINEAR_MIPMAP_LINEAR, "wrapS": CLAMP_TO_EDGE, "wrapT": CLAMP_TO_EDGE}
        ],
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [described],
    }
    if texture_format == "webp":
        document |= {"extensionsUsed": [WEBP], "extensionsRequired": [WEBP]}
    return document


def _asset_entry(metadata: Mapping[str, object]) -> dict:
    entry: dict[str, object] = {"version": "2.0", "generator": GENERATOR, "extras": dict(metadata)}
    if metadata.get("licence"):
        entry["copyright"] = f"Made with the prior {metadata.get('prior', 'unknown')}, licence {metadata['licence']}"
    return entry


def _material_entry(material: Material) -> dict:
    surface = {
        "baseColorTexture": {"index": 0},
        "metallicFactor": material.metallic,
        "roughnessFactor": material.roughness,
    }
    entry: dict[str, object] = {"name": "surface", "pbrMetallicRoughness": surface}
    return entry if material.normal is None else {**entry, "normalTexture": {"index": 1}}


def _texture_entry(image: int, texture_format: TextureFormat) -> dict:
    source = {"source": image}
    return {"sampler": 0, "extensions": {WEBP: source}} if texture_format == "webp" else {"sampler": 0, **source}


def _buffer(asset: Asset, textures: list[TextureFile]) -> _Buffer:
    """The indices, positions, normals and texture coordinates, the tangents if a normal map needs them, `textures`.

    The texture coordinates' v points down in glTF. Tangents count as if it pointed up, like a normal map's green.
    """
    mesh = asset.mesh
    uv = np.stack([mesh.uv[:, 0], 1.0 - mesh.uv[:, 1]], axis=1)
    arrays = [
        (mesh.faces.reshape(-1).astype("<u4"), "SCALAR", ELEMENT_ARRAY_BUFFER),
        (mesh.vertices.astype("<f4"), "VEC3", ARRAY_BUFFER),
        (mesh.normals.astype("<f4"), "VEC3", ARRAY_BUFFER),
        (uv.astype("<f4"), "VEC2", ARRAY_BUFFER),
    ]
    if asset.material.normal is not None:
        arrays.append((vertex_tangents(mesh).astype("<f4"), "VEC4", ARRAY_BUFFER))
    chunks = [array.tobytes() for array, _, _ in arrays] + [texture.data for texture in textures]
    targets = [target for _, _, target in arrays] + [None] * len(textures)
    accessors = [_accessor(index, array, kind) for index, (array, kind, _) in enumerate(arrays)]
    return _Buffer(b"".join(_padded(chunk, b"\0") for chunk in chunks), _buffer_views(chunks, targets), accessors)


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


def _json(document: dict) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
