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
        ValueError: it is no glTF, or ends too early.
    """
    data = path.read_bytes()
    if data[:4] != b"glTF":
        return _document(data), b""
    if len(data) < 20:
        raise ValueError(f"it ends after {len(data)} bytes, within its header")
    size, length = struct.unpack_from("<II", data, 8)
    if len(data) < size:
        raise ValueError(f"it ends after {len(data)} of {size} bytes")
    return _document(data[20 : 20 + length]), data[28 + length :]


def document_metadata(document: dict[str, Any]) -> dict[str, object]:
    """`asset.extras`, and the generator and the copyright where they are given."""
    asset = document.get("asset", {})
    extras = asset.get("extras", {})
    named = {key: asset[key] for key in ("generator", "copyright") if key in asset}
    return {**(extras if isinstance(extras, dict) else {"extras": extras}), **named}


def document_textures(document: dict[str, Any], binary: bytes, folder: Path) -> tuple[FoundTexture, ...]:
    """Every texture that a material uses, once for each use."""
    found = []
    for material in document.get("materials", []):
        for role, texture in _used_textures(material):
            found.append(_texture(role, texture, document, binary, folder))
    return tuple(found)


def _texture(role: str, texture: int, document: dict[str, Any], binary: bytes, folder: Path) -> FoundTexture:
    entry = _entry(document, "textures", texture)
    extended = [value["source"] for value in entry.get("extensions", {}).values() if "source" in value]
    image = _entry(document, "images", extended[0] if extended else entry.get("source"))
    name = str(image.get("uri", image.get("name", "embedded" if image else f"texture {texture}")))
    shown = "embedded" if name.startswith("data:") else unquote(name)
    return found_texture(role, shown, _image_data(image, document, binary, folder))


def _entry(document: dict[str, Any], kind: str, number: Any) -> dict[str, Any]:
    """Entry `number` of the list `kind`; empty when there is none."""
    entries = document.get(kind, [])
    inside = isinstance(number, int) and 0 <= number < len(entries)
    return dict(entries[number]) if inside else {}


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
    view = _entry(document, "bufferViews", image.get("bufferView"))
    buffer = _entry(document, "buffers", view.get("buffer"))
    data = _uri_data(buffer["uri"], folder) if "uri" in buffer else binary
    start = view.get("byteOffset", 0)
    return None if data is None else data[start : start + view.get("byteLength", 0)]


def _uri_data(uri: str, folder: Path) -> bytes | None:
    if uri.startswith("data:"):
        return base64.b64decode(uri.partition(",")[2])
    try:
        return (folder / unquote(uri)).read_bytes()
    except OSError:
        return None


def _document(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"it is no glTF ({error})") from None
    if not isinstance(value, dict) or "asset" not in value:
        raise ValueError("it is no glTF (it has no 'asset')")
    return value
