"""The surface as a binary STL, for slicers: without seams, colours or textures."""

from __future__ import annotations

import numpy as np

from nerf_bridge.mesh.clean import drop_bad_faces
from nerf_bridge.mesh.data import Asset, Mesh
from nerf_bridge.mesh.geometry import face_crosses
from nerf_bridge.mesh.placement import Up
from nerf_bridge.mesh.seams import join_seams

HEADER_BYTES = 80
MAKER, SEPARATOR = "nerf_bridge", ";"
SAID = ("seed", "prior", "licence", "prompt")
"""What the header has room for, what matters least last."""
FACE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def stl_file(name: str, asset: Asset, up: Up, millimetres: bool) -> dict[str, bytes]:
    """The file's content under its name; the same input gives the same bytes.

    Args:
        name: of the file.
        asset: in metres, in the axes of `up`.
        up: which axis points up, noted in the header.
        millimetres: write the lengths in millimetres.
    """
    first, point = join_seams(asset.mesh)
    vertices = asset.mesh.vertices[first] * (1000.0 if millimetres else 1.0)
    scaled = drop_bad_faces(Mesh(vertices, point[asset.mesh.faces]))
    crosses = face_crosses(scaled)
    faces = np.zeros(len(scaled.faces), dtype=FACE)
    faces["normal"] = crosses / np.maximum(np.linalg.norm(crosses, axis=1, keepdims=True), 1e-300)
    faces["corners"] = scaled.vertices[scaled.faces]
    count = np.array([len(faces)], dtype="<u4").tobytes()
    return {name: stl_header(asset, up, millimetres) + count + faces.tobytes()}


def stl_header(asset: Asset, up: Up, millimetres: bool) -> bytes:
    """80 bytes of ASCII: unit, axis, seed, prior, the licence up to a semicolon, and as much of the prompt as fits."""
    known = {key: str(value) for key, value in asset.metadata.items() if key in SAID and value is not None}
    if "licence" in known:
        known["licence"] = known["licence"].partition(SEPARATOR)[0]
    words = [MAKER, f"unit={'mm' if millimetres else 'm'}", f"up={up}"]
    words += [f"{key}={known[key]}" for key in SAID if key in known]
    return SEPARATOR.join(words).encode("ascii", "replace")[:HEADER_BYTES].ljust(HEADER_BYTES, b" ")


def read_stl_header(header: bytes) -> dict[str, object]:
    """What `stl_header` wrote; nothing when the header is somebody else's."""
    maker, _, said = header.decode("ascii", "replace").strip().partition(SEPARATOR)
    if maker != MAKER:
        return {}
    before, prompt, words = said.partition("prompt=")
    pairs = (word.partition("=") for word in before.split(SEPARATOR) if word)
    notes: dict[str, object] = {key: value for key, _, value in pairs}
    return notes | ({"prompt": words} if prompt else {})
