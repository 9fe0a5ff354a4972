"""What was found in a mesh file, ours or somebody else's."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class FoundTexture:
    """A picture that a material names.

    Attributes:
        role: what the material uses it for, in the words of its format.
        name: of its file, or in the file.
        width, height: pixels; 0 when it cannot be read.
        format: for example "PNG"; empty when it cannot be read.
    """

    role: str
    name: str
    width: int
    height: int
    format: str


@dataclass(frozen=True)
class MeshFile:
    """What a file holds.

    Attributes:
        vertices: [v, 3] float64 as stored, each part of the scene where it stands, in the file's axes and unit.
        faces: [f, 3] int64; polygons are cut into triangles.
        normals: [f, 3, 3] float64, of the corners of each face, zero where the file says none; None without any.
        uv: [n, 2] float64, every texture coordinate there is, v up; None without any.
        vertex_colors: whether there is a colour for each vertex.
        materials: their names.
        textures: the pictures that the materials name.
        metadata: what the file says of its making.
        up: axis that points up, "y" or "z"; None where neither the format nor the file says.
        metres: length of the file's unit; None where neither the format nor the file says.
        ours: whether the file says that nerf_bridge wrote it.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray | None
    uv: np.ndarray | None
    vertex_colors: bool
    materials: tuple[str, ...]
    textures: tuple[FoundTexture, ...]
    metadata: Mapping[str, object]
    up: str | None
    metres: float | None
    ours: bool


def checked_faces(faces: np.ndarray, n_vertices: int) -> np.ndarray:
    """`faces` as they are.

    Raises:
        ValueError: one names a vertex that is not there.
    """
    wrong = faces[(faces < 0) | (faces >= n_vertices)]
    if len(wrong):
        raise ValueError(f"a face names vertex {wrong[0]} of {n_vertices}")
    return faces


def joined_normals(faces: list[np.ndarray], normals: list[np.ndarray | None]) -> np.ndarray | None:
    """The corner normals of all parts, zero for those without; None where no part has any."""
    if all(part is None for part in normals):
        return None
    pairs = zip(faces, normals, strict=True)
    return np.concatenate([np.zeros((len(face), 3, 3)) if part is None else part for face, part in pairs])


def found_texture(role: str, name: str, data: bytes | None) -> FoundTexture:
    """Look at the picture in `data`; None stands for a file that cannot be read."""
    try:
        with Image.open(io.BytesIO(data or b"")) as image:
            image.load()
            return FoundTexture(role, name, *image.size, image.format or "")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what pillow raises on broken pictures
        return FoundTexture(role, name, 0, 0, "")
