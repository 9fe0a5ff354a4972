"""Reading Wavefront OBJ and MTL files, forgiving what real exports get wrong.

Forgiven: absolute Windows paths of textures, missing material files and textures, wrong letter case, polygons that
are not convex, negative indices, materials that are used but never defined.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, UnidentifiedImageError

logger = logging.getLogger(__name__)

ReadFile = Callable[[str], bytes | None]  # file name beside the OBJ (letter case ignored) -> content
DEFAULT_KD = (0.75, 0.75, 0.75)
MAX_TEXTURE = 1024  # pixels a side; larger textures are reduced at once


@dataclass(frozen=True)
class Material:
    """One MTL material: name, diffuse colour [3] in 0..1, opacity in 0..1, texture [h, w, 4] uint8 or None."""

    name: str
    diffuse: tuple[float, float, float] = DEFAULT_KD
    opacity: float = 1.0
    texture: np.ndarray | None = None
    texture_name: str = ""
    texture_missing: bool = False


@dataclass(frozen=True)
class ObjMesh:
    """A triangulated OBJ: vertices [v, 3], uvs [t, 2] float64; faces and face_uvs [f, 3] int64 (uv −1 where none);
    face_materials [f] int64 into materials."""

    vertices: np.ndarray
    uvs: np.ndarray
    faces: np.ndarray
    face_uvs: np.ndarray
    face_materials: np.ndarray
    materials: list[Material]


@dataclass
class _RawMaterial:
    diffuse: tuple[float, float, float] = DEFAULT_KD
    opacity: float = 1.0
    texture_file: str | None = None
    alpha_file: str | None = None


@dataclass
class _Faces:
    corners: list[tuple[int, int, int]] = field(default_factory=list)
    uvs: list[tuple[int, int, int]] = field(default_factory=list)
    materials: list[int] = field(default_factory=list)


def read_obj(text: str, read_file: ReadFile) -> ObjMesh:
    """Parse an OBJ and the material files and textures it names.

    Args:
        text: the OBJ file's content.
        read_file: gives the bytes of a file beside the OBJ, or None where there is none.

    Returns:
        The triangulated mesh in the file's own axes.

    Raises:
        ValueError: if the file holds no faces.
    """
    positions: list[str] = []
    uvs: list[tuple[float, float]] = []
    faces = _Faces()
    polygons: list[tuple[list[int], list[int], int]] = []
    raw_materials: dict[str, _RawMaterial] = {}
    material_ids: dict[str, int] = {}
    current = material_ids.setdefault("", 0)
    for line in text.splitlines():
        keyword, _, rest = line.strip().partition(" ")
        if keyword == "v":
            positions.append(" ".join(rest.split()[:3]))
        elif keyword == "vt":
            values = rest.split()
            uvs.append((float(values[0]), float(values[1]) if len(values) > 1 else 0.0))
        elif keyword == "f":
            corners, corner_uvs = _parse_face(rest, len(positions), len(uvs))
            polygons.append((corners, corner_uvs, current))
        elif keyword == "usemtl":
            current = material_ids.setdefault(rest.strip(), len(material_ids))
        elif keyword == "mtllib":
            content = read_file(_base_name(rest))
            if content is not None:
                raw_materials.update(read_mtl(content.decode("latin-1")))
    vertices = np.array(" ".join(positions).split(), dtype=np.float64).reshape(-1, 3)
    for corners, corner_uvs, material in polygons:
        _add_triangles(faces, vertices, corners, corner_uvs, material)
    if not faces.corners:
        raise ValueError("an OBJ file needs faces, got none")
    materials = [_load_material(name, raw_materials.get(name), read_file) for name in material_ids]
    return ObjMesh(
        vertices=vertices,
        uvs=np.array(uvs, dtype=np.float64).reshape(-1, 2),
        faces=np.array(faces.corners, dtype=np.int64),
        face_uvs=np.array(faces.uvs, dtype=np.int64),
        face_materials=np.array(faces.materials, dtype=np.int64),
        materials=materials,
    )


def _parse_face(rest: str, n_vertices: int, n_uvs: int) -> tuple[list[int], list[int]]:
    corners, uvs = [], []
    for token in rest.split():
        parts = token.split("/")
        index = int(parts[0])
        corners.append(index - 1 if index > 0 else n_vertices + index)
        uv = int(parts[1]) if len(parts) > 1 and parts[1] else 0
        uvs.append(uv - 1 if uv > 0 else (n_uvs + uv if uv < 0 else -1))
    return corners, uvs


def _add_triangles(
    faces: _Faces, vertices: np.ndarray, corners: list[int], corner_uvs: list[int], material: int
) -> None:
    if len(corners) < 3 or max(corners) >= len(vertices) or min(corners) < 0:
        return
    triangles = [(0, 1, 2)] if len(corners) == 3 else triangulate_polygon(vertices[corners])
    for a, b, c in triangles:
        faces.corners.append((corners[a], corners[b], corners[c]))
        faces.uvs.append((corner_uvs[a], corner_uvs[b], corner_uvs[c]))
        faces.materials.append(material)


def triangulate_polygon(points: np.ndarray) -> list[tuple[int, int, int]]:
    """Cut a planar polygon into triangles: a fan when it is convex, else by clipping ears.

    Args:
        points: [n, 3] corners in order, n >= 3.

    Returns:
        n − 2 triples of indices into points.
    """
    n = len(points)
    fan = [(0, i, i + 1) for i in range(1, n - 1)]
    following = np.roll(points, -1, axis=0)
    normal = np.cross(points, following).sum(axis=0)  # Newell's method
    if not np.linalg.norm(normal) > 0:
        return fan
    turns = np.cross(following - points, np.roll(points, -2, axis=0) - following) @ normal
    if (turns >= -1e-12 * np.abs(turns).max()).all():
        return fan
    drop = int(np.argmax(np.abs(normal)))
    flat = np.delete(points, drop, axis=1)
    # Deleting y of (x, y, z) leaves (x, z), which is left-handed.
    orientation = float(np.sign(normal[drop])) * (-1.0 if drop == 1 else 1.0)
    return _clip_ears(flat * np.array([orientation, 1.0]))


def _clip_ears(flat: np.ndarray) -> list[tuple[int, int, int]]:
    """Ear clipping of a counter-clockwise polygon [n, 2]; takes the least bad corner when none is an ear."""
    remaining = list(range(len(flat)))
    triangles = []
    while len(remaining) > 3:
        n = len(remaining)
        ear = next((k for k in range(n) if _is_ear(flat, remaining, k)), 0)
        triangles.append((remaining[ear - 1], remaining[ear], remaining[(ear + 1) % n]))
        remaining.pop(ear)
    triangles.append((remaining[0], remaining[1], remaining[2]))
    return triangles


def _is_ear(flat: np.ndarray, remaining: list[int], k: int) -> bool:
    a, b, c = flat[remaining[k - 1]], flat[remaining[k]], flat[remaining[(k + 1) % len(remaining)]]
    if _cross(a, b, c) <= 0:
        return False
    keep = {remaining[k - 1], remaining[k], remaining[(k + 1) % len(remaining)]}
    others = flat[[i for i in remaining if i not in keep]]
    inside = (_cross(a, b, others) > 0) & (_cross(b, c, others) > 0) & (_cross(c, a, others) > 0)
    return not bool(inside.any())


def _cross(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return (b[0] - a[0]) * (c[..., 1] - a[1]) - (b[1] - a[1]) * (c[..., 0] - a[0])


def read_mtl(text: str) -> dict[str, _RawMaterial]:
    """Parse an MTL file into raw materials by name; ``d`` wins over ``Tr`` (= 1 − d)."""
    materials: dict[str, _RawMaterial] = {}
    current = _RawMaterial()
    has_d = False
    for line in text.splitlines():
        keyword, _, rest = line.strip().replace("\t", " ").partition(" ")
        rest = rest.strip()
        if keyword == "newmtl":
            current = materials.setdefault(rest, _RawMaterial())
            has_d = False
        elif keyword == "Kd":
            current.diffuse = _parse_rgb(rest)
        elif keyword == "d":
            current.opacity, has_d = float(rest.split()[-1]), True
        elif keyword == "Tr" and not has_d:
            current.opacity = 1.0 - float(rest.split()[-1])
        elif keyword == "map_Kd":
            current.texture_file = _base_name(rest)
        elif keyword == "map_d":
            current.alpha_file = _base_name(rest)
    return materials


def _parse_rgb(rest: str) -> tuple[float, float, float]:
    red, green, blue = (min(max(float(value), 0.0), 1.0) for value in rest.split()[:3])
    return red, green, blue


def _base_name(path: str) -> str:
    return path.strip().strip('"').replace("\\", "/").rsplit("/", 1)[-1]


def _load_material(name: str, raw: _RawMaterial | None, read_file: ReadFile) -> Material:
    if raw is None:
        return Material(name=name)
    if raw.texture_file is None:
        return Material(name=name, diffuse=raw.diffuse, opacity=raw.opacity)
    texture = _load_image(raw.texture_file, read_file)
    if texture is None:
        logger.debug("texture %r of material %r is missing", raw.texture_file, name)
        return Material(name, raw.diffuse, raw.opacity, None, raw.texture_file, texture_missing=True)
    if raw.alpha_file is not None and raw.alpha_file != raw.texture_file:
        texture = _with_alpha(texture, _load_image(raw.alpha_file, read_file))
    return Material(name, raw.diffuse, raw.opacity, texture, raw.texture_file)


def _load_image(name: str, read_file: ReadFile) -> np.ndarray | None:
    content = read_file(name)
    if content is None:
        content = read_file(name.rsplit(" ", 1)[-1])  # options such as "-s 1 1" stand before the name
    if content is None:
        return None
    try:
        image = Image.open(io.BytesIO(content)).convert("RGBA")
    except (UnidentifiedImageError, OSError, ValueError) as error:
        logger.debug("texture %r cannot be read: %s", name, error)
        return None
    image.thumbnail((MAX_TEXTURE, MAX_TEXTURE), Image.Resampling.BOX)
    return np.array(image)


def _with_alpha(texture: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    if alpha is None:
        return texture
    size = (texture.shape[1], texture.shape[0])
    grey = np.array(Image.fromarray(alpha[..., :3]).convert("L").resize(size))
    return np.concatenate([texture[..., :3], grey[..., None]], axis=-1)
