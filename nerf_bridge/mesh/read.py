"""Any mesh file, ours or somebody else's, as plain arrays and words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import ArrayLike

from nerf_bridge.errors import UserError
from nerf_bridge.mesh.gltf import GENERATOR
from nerf_bridge.mesh.mesh_file import FoundTexture, MeshFile, checked_faces, found_texture, joined_normals
from nerf_bridge.mesh.notes import read_notes
from nerf_bridge.mesh.read_gltf import document_metadata, document_textures, read_document
from nerf_bridge.mesh.read_usd import USD_SUFFIXES, read_usd
from nerf_bridge.mesh.stl import FACE, HEADER_BYTES, read_stl_header

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", *USD_SUFFIXES, ".off")
METRES = {"m": 1.0, "mm": 0.001}
NOTE_LINES = 64
"""Lines of a file among which its notes are looked for."""


def read_mesh(path: Path) -> MeshFile:
    """Read the triangles of the file at `path`, and what it says of them.

    Raises:
        UserError: there is no such file, its format is unknown, or it cannot be read or holds no triangles.
    """
    suffix = path.suffix.lower()
    if path.is_dir() or not path.exists():
        raise UserError(
            f"cannot read a mesh from {path}: {'it is a folder' if path.is_dir() else 'there is no such file'}"
        )
    if suffix not in SUFFIXES:
        raise UserError(f"cannot read a mesh from {path}: expected a name that ends in {', '.join(SUFFIXES)}")
    try:
        found = _read(path, suffix)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read a mesh from {path}: {error}") from None
    except Exception as error:  # a broken file breaks its reader in any way
        raise UserError(f"cannot read a mesh from {path}: it is damaged: {_cause(error)}") from None
    if len(found.faces) == 0:
        raise UserError(f"cannot read a mesh from {path}: it holds no triangles")
    return found


def _read(path: Path, suffix: str) -> MeshFile:
    if path.stat().st_size == 0:
        raise UserError(f"cannot read a mesh from {path}: it is empty")
    if suffix in USD_SUFFIXES:
        return read_usd(path)
    if suffix in (".glb", ".gltf"):
        read_document(path)  # says more clearly than trimesh what is wrong
    if suffix == ".stl":
        _check_stl(path)
    return _described(path, _geometry(path))


def _cause(error: Exception) -> str:
    words = " ".join(str(error).split())
    if isinstance(error, LookupError | TypeError | AttributeError):
        return f"something in it names what is not there ({words or type(error).__name__})"
    return words or type(error).__name__


def _check_stl(path: Path) -> None:
    """Raise ValueError for a binary STL file that ends before its faces do."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES + 4)
    if header.lstrip()[:5].lower() == b"solid" and b"\0" not in header:
        return
    if len(header) < HEADER_BYTES + 4:
        raise ValueError(f"it ends after {size} bytes, within its header")
    expected = HEADER_BYTES + 4 + FACE.itemsize * int.from_bytes(header[HEADER_BYTES:], "little")
    if size < expected:
        raise ValueError(f"it ends after {size} of {expected} bytes")


def _geometry(path: Path) -> MeshFile:
    """What trimesh finds: geometry, texture coordinates, colours, names of materials."""
    scene = trimesh.load_scene(path, process=False)
    placed = zip(scene.dump(), (scene.graph[node] for node in scene.graph.nodes_geometry), strict=True)
    kept = [(part, placing) for part, placing in placed if isinstance(part, trimesh.Trimesh)]
    parts = [part for part, _ in kept]
    starts = np.cumsum([0] + [len(part.vertices) for part in parts])
    own_faces = [checked_faces(np.asarray(part.faces), len(part.vertices)) for part in parts]
    faces = [face + start for face, start in zip(own_faces, starts, strict=False)]
    normals = [
        _corner_normals(scene.geometry[name], matrix, face)
        for (_, (matrix, name)), face in zip(kept, own_faces, strict=True)
    ]
    textured = [part.visual for part in parts if part.visual.kind == "texture"]
    uv = [np.asarray(visual.uv) for visual in textured if visual.uv is not None]
    names = dict.fromkeys(str(visual.material.name) for visual in textured)
    return MeshFile(
        vertices=np.concatenate([np.asarray(part.vertices, dtype=np.float64) for part in parts] or [np.zeros((0, 3))]),
        faces=np.concatenate(faces or [np.zeros((0, 3))]).astype(np.int64),
        normals=joined_normals(own_faces, normals),
        uv=np.concatenate(uv).astype(np.float64) if uv else None,
        vertex_colors=any(part.visual.kind == "vertex" for part in parts),
        materials=tuple(names),
        textures=(),
        metadata={},
        up=None,
        metres=None,
        ours=False,
    )


def _corner_normals(stored: trimesh.Trimesh, matrix: ArrayLike, faces: np.ndarray) -> np.ndarray | None:
    """[f, 3, 3] normals of the corners of `faces` where `matrix` puts them; None where the file has none."""
    if "vertex_normals" not in stored._cache:  # else trimesh would make some
        return None
    turned = np.asarray(stored.vertex_normals, dtype=np.float64) @ np.linalg.pinv(np.asarray(matrix)[:3, :3])
    return turned[faces]


def _described(path: Path, geometry: MeshFile) -> MeshFile:
    """`geometry` with the textures, the metadata, the axis and the unit that the file names."""
    match path.suffix.lower():
        case ".glb" | ".gltf":
            document, binary = read_document(path)
            textures = document_textures(document, binary, path.parent)
            metadata = document_metadata(document)
            ours = metadata.get("generator") == GENERATOR
            return replace(geometry, textures=textures, metadata=metadata, up="y", metres=1.0, ours=ours)
        case ".obj":
            notes = read_notes(line.removeprefix("#") for line in _lines(path))
            return _with_notes(replace(geometry, textures=_obj_textures(path)), notes)
        case ".ply":
            return _with_notes(geometry, read_notes(line.removeprefix("comment") for line in _lines(path)))
        case ".stl":
            with path.open("rb") as file:
                return _with_notes(geometry, read_stl_header(file.read(HEADER_BYTES)))
    return geometry


def _with_notes(geometry: MeshFile, notes: dict[str, object]) -> MeshFile:
    """The axis and the unit of `notes` as what they are, the rest as metadata."""
    said = {key: value for key, value in notes.items() if key not in ("up", "front", "unit")}
    up, unit = notes.get("up"), notes.get("unit")
    axis = None if up is None else str(up)
    return replace(geometry, metadata=said, up=axis, metres=METRES.get(str(unit)), ours=bool(notes))


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for line in islice(file, NOTE_LINES):
            yield line.decode("utf-8", "replace")


def _obj_textures(path: Path) -> tuple[FoundTexture, ...]:
    """Every picture that the material libraries of an OBJ file name."""
    found = []
    with path.open("rb") as file:
        libraries = [line.split(None, 1)[1] for line in file if line.startswith(b"mtllib") and len(line.split()) > 1]
    for name in dict.fromkeys(library.decode("utf-8", "replace").strip() for library in libraries):
        library = path.parent / name
        if not library.is_file():
            found.append(FoundTexture("mtllib", name, 0, 0, ""))
            continue
        for line in library.read_text(encoding="utf-8", errors="replace").splitlines():
            key, *words = line.split() or [""]
            if words and (key.lower().startswith("map_") or key.lower() in ("norm", "bump", "disp", "refl")):
                picture = library.parent / words[-1]
                found.append(found_texture(key, words[-1], picture.read_bytes() if picture.is_file() else None))
    return tuple(found)
