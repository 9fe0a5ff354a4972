"""What a glTF file says besides its geometry: materials, textures, metadata."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from nerf_bridge.mesh.mesh_file import FoundTexture, found_texture


def read_document(path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON of a .gltf or .glb file, and the binary chunk of the latter.

    Raises:
        OSError: the file cannot be read.
        ValueError, struct.error: it is no glTF.
    """
    data = path.read_bytes()
    if data[:4] != b"glTF":
        return _mapping(json.loads(data)), b""
    (length,) = struct.unpack_from("<I", data, 12)
    document = _mapping(json.loads(data[20 : 20 + length]))
    return document, data[28 + length :]


def document_metadata(document: dict[str, Any]) -> dict[str, object]:
    """`asset.extras`, and the generator and the copyright where they are given."""
    asset = document.get("asset", {})
    extras = asset.get("extras", {})
    named = {key: asset[key] for key in ("generator", "copyright") if key in asset}
    return {**(extras if isinstance(extras, dict) else {"extras": extras}), **named}


def document_textures(document: dict[str, Any], binary: bytes, folder: Path) -> tuple[FoundTexture, ...]:
    """Every texture that a material uses, once for each use."""
    images = document.get("images", [])
    found = []
    for material in document.get("materials", []):
        for role, texture in _used_textures(material):
            entry = document["textures"][texture]
            extended = [value["source"] for value in entry.get("extensions", {}).values() if "source" in value]
            image = images[(extended or [entry["source"]])[0]]
            name = str(image.get("uri", image.get("name", "embedded")))
            shown = "embedded" if name.startswith("data:") else unquote(name)
            found.append(found_texture(role, shown, _image_data(image, document, binary, folder)))
    return tuple(found)


def _used_textures(entry: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """(role, texture) of each `...Texture` in a material and in what it holds."""
    for key, value in entry.items():
        if key.endswith("Texture") and isinstance(value, dict) and "index" in value:
            yield key.removesuffix("Texture"), value["index"]
        elif isinstance(value, dict):
            yield from _used_textures(value)


def _image_data(image: dict[str, Any], document: dict[str, Any], binary: bytes, folder: Path) -> bytes | None:
    if "uri" in image:
        return _uri_data(image["uri"], folder)
    view = document["bufferViews"][image["bufferView"]]
    buffer = document["buffers"][view["buffer"]]
    data = _uri_data(buffer["uri"], folder) if "uri" in buffer else binary
    start = view.get("byteOffset", 0)
    return None if data is None else data[start : start + view["byteLength"]]


def _uri_data(uri: str, folder: Path) -> bytes | None:
    if uri.startswith("data:"):
        return base64.b64decode(uri.partition(",")[2])
    try:
        return (folder / unquote(uri)).read_bytes()
    except OSError:
        return None


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or "asset" not in value:
        raise ValueError("it is no glTF")
    return value
