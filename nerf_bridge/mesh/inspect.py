"""What is in a mesh file, and whether it is sound: closed, manifold, outward, with textures that are there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from nerf_bridge.mesh.clean import weld
from nerf_bridge.mesh.data import Mesh
from nerf_bridge.mesh.geometry import (
    directed_edges,
    face_areas,
    face_bodies,
    face_crosses,
    face_volumes,
    group_rows,
    keep_faces,
)
from nerf_bridge.mesh.mesh_file import FoundTexture, MeshFile
from nerf_bridge.mesh.read import read_mesh

WELD = 1e-7
"""Vertices nearer than this fraction of the bounding box's diagonal are one point."""
NO_AREA = 1e-14
"""Faces of less than this fraction of the diagonal's square have no area; single precision knows no smaller ones."""
UV_TOLERANCE = 1e-6
NO_VOLUME = 1e-9
"""Bodies of less than this fraction of their area times the diagonal have no inside."""
AGAINST = 0.1
"""Share of the area above which normals that look away from their faces are an error and not the smoothing's."""
UNCHECKED = ("self-intersection",)
"""What nobody looks for here: it may be there in a sound file."""
UNIT_NAMES = {1.0: "m", 0.01: "cm", 0.001: "mm"}


@dataclass(frozen=True)
class Topology:
    """How the faces of a surface hang together, seams welded.

    Attributes:
        points: vertices, those on both sides of a seam counted once.
        bodies: parts that no edge connects.
        degenerate_faces: with a corner twice, or without area.
        duplicate_faces: on the same three points as another one.
        open_edges: of one face only.
        crowded_edges: of more than two faces.
        twisted_edges: of two faces that wind against each other.
        pinched_points: where the surface touches itself in a point.
        inward_bodies: of a closed surface, those that are inside out; a cavity, within another body, is not.
        volume: in cubic units of the file, negative when the faces look inward.
    """

    points: int
    bodies: int
    degenerate_faces: int
    duplicate_faces: int
    open_edges: int
    crowded_edges: int
    twisted_edges: int
    pinched_points: int
    inward_bodies: int
    volume: float

    @property
    def watertight(self) -> bool:
        """Every edge joins two faces that wind alike."""
        return self.open_edges == self.crowded_edges == self.twisted_edges == 0

    @property
    def manifold(self) -> bool:
        """No edge has more than two faces, and no point more than one fan of faces."""
        return self.crowded_edges == self.pinched_points == 0


@dataclass(frozen=True)
class Inspection:
    """What is in a file.

    Attributes:
        path: the file.
        vertices: as stored, seams counted twice.
        faces: triangles.
        topology: how they hang together.
        low, high: corners of the bounding box, in the file's axes and unit.
        up: axis that points up, or None where nobody says.
        metres: length of the file's unit, or None where nobody says.
        uv_range: (least, greatest) texture coordinate, or None without any.
        vertex_colors: whether there is a colour for each vertex.
        materials: their names.
        textures: what the materials name.
        metadata: what the file says of its making.
        problems: why it is not sound, a sentence each.
        notes: what may be meant so, a sentence each.
    """

    path: Path
    vertices: int
    faces: int
    topology: Topology
    low: tuple[float, ...]
    high: tuple[float, ...]
    up: str | None
    metres: float | None
    uv_range: tuple[float, float] | None
    vertex_colors: bool
    materials: tuple[str, ...]
    textures: tuple[FoundTexture, ...]
    metadata: Mapping[str, object]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """None of the problems that are looked for was found; `UNCHECKED` names one that is not looked for."""
        return not self.problems


def inspect_file(path: Path) -> Inspection:
    """Look into the mesh file at `path`.

    Raises:
        UserError: it cannot be read, or holds no triangles.
    """
    found = read_mesh(path)
    finite = np.isfinite(found.vertices).all(axis=1)
    points = np.where(finite[:, None], found.vertices, 0.0)
    used = points[np.unique(found.faces[finite[found.faces].all(axis=1)])]
    used = used if len(used) else points[:1]
    low, high = used.min(axis=0), used.max(axis=0)
    topology = surface_topology(Mesh(points, found.faces))
    uv_range = _uv_range(found)
    strays = _stray_coordinates(uv_range)
    return Inspection(
        path=path,
        vertices=len(found.vertices),
        faces=len(found.faces),
        topology=topology,
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        up=found.up,
        metres=found.metres,
        uv_range=uv_range,
        vertex_colors=found.vertex_colors,
        materials=found.materials,
        textures=found.textures,
        metadata=found.metadata,
        problems=tuple(
            _surface_problems(topology, int((~finite).sum()))
            + _normal_problems(found, points)
            + _texture_problems(found)
            + (strays if found.ours else [])
        ),
        notes=() if found.ours else tuple(f"{words} (tiled?)" for words in strays),
    )


def surface_topology(stored: Mesh) -> Topology:
    """Measure a surface whose vertices may be split along seams."""
    diagonal = float(np.linalg.norm(np.ptp(stored.vertices, axis=0)))
    mesh = weld_near(stored, max(WELD * diagonal, 1e-30))
    corners = np.sort(mesh.faces, axis=1)
    proper = np.asarray((np.diff(corners, axis=1) > 0).all(axis=1))
    flat = proper & (face_areas(mesh) <= NO_AREA * diagonal**2)
    mesh = keep_faces(mesh, proper)  # a face on a line has its sides all the same, one on an edge has none
    n_distinct = len(np.unique(corners[proper], axis=0))
    count, forward = _edges(mesh)
    closed = bool(((count == 2) & (forward == 1)).all())
    return Topology(
        points=len(mesh.vertices),
        bodies=int(face_bodies(mesh).max(initial=-1)) + 1,
        degenerate_faces=int((~proper).sum() + flat.sum()),
        duplicate_faces=int(proper.sum()) - n_distinct,
        open_edges=int((count == 1).sum()),
        crowded_edges=int((count > 2).sum()),
        twisted_edges=int(((count == 2) & (forward != 1)).sum()),
        pinched_points=_pinched_points(mesh),
        inward_bodies=_inward_bodies(mesh, diagonal) if closed else 0,
        volume=float(face_volumes(_centred(mesh)).sum()),
    )


def weld_near(mesh: Mesh, distance: float) -> Mesh:
    """Make one vertex of those nearer than `distance`, also of those in a chain; faces keep their number."""
    coarse = weld(mesh, distance / 2)  # leaves each point few neighbours, however many lie in one place
    n_points = len(coarse.vertices)
    if n_points == 0 or not np.isfinite(distance):
        return coarse
    pairs = cKDTree(coarse.vertices).query_pairs(distance, output_type="ndarray")
    graph = coo_matrix((np.ones(len(pairs), dtype=np.int8), tuple(pairs.T)), shape=(n_points, n_points))
    group = connected_components(graph, directed=False)[1].astype(np.int64)
    first, group = group_rows(group[:, None])
    return Mesh(coarse.vertices[first], group[coarse.faces])


def _centred(mesh: Mesh) -> Mesh:
    """`mesh` about the origin, where volumes lose least to rounding."""
    return Mesh(mesh.vertices - mesh.vertices.mean(axis=0), mesh.faces) if len(mesh.vertices) else mesh


def _inward_bodies(mesh: Mesh, diagonal: float) -> int:
    """Bodies of a closed surface that are inside out without being a cavity of other ones."""
    body = face_bodies(mesh)
    volumes = np.bincount(body, face_volumes(_centred(mesh)))
    areas = face_areas(mesh)
    corners = mesh.vertices[mesh.faces]
    low, high = np.full((len(volumes), 3), np.inf), np.full((len(volumes), 3), -np.inf)
    np.minimum.at(low, body, corners.min(axis=1))
    np.maximum.at(high, body, corners.max(axis=1))
    count = 0
    for number in np.flatnonzero(volumes < -NO_VOLUME * np.bincount(body, areas) * diagonal):
        point = corners[np.where(body == number, areas, -1.0).argmax()].mean(axis=0)
        around = ((low <= point) & (point <= high)).all(axis=1)
        around[number] = False
        count += _winding(corners[around[body]], point) < 0.5
    return count


def _winding(corners: np.ndarray, point: np.ndarray) -> float:
    """How often the faces of `corners` [f, 3, 3] go around `point` (Van Oosterom and Strackee 1983)."""
    a, b, c = (corners[:, corner] - point for corner in range(3))
    la, lb, lc = (np.linalg.norm(side, axis=1) for side in (a, b, c))
    ab, bc, ca = (np.einsum("ij,ij->i", p, q) for p, q in ((a, b), (b, c), (c, a)))
    solid = np.arctan2(np.einsum("ij,ij->i", a, np.cross(b, c)), la * lb * lc + ab * lc + bc * la + ca * lb)
    return float(solid.sum() / (2 * np.pi))


def _edges(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """([e] faces of each edge, [e] how many of them run along it from the point of lower number to the other)."""
    directed = directed_edges(mesh)
    edges, index, count = np.unique(np.sort(directed, axis=1), axis=0, return_inverse=True, return_counts=True)
    forward = np.bincount(index.reshape(-1), directed[:, 0] < directed[:, 1], len(edges))
    return count, forward


def _pinched_points(mesh: Mesh) -> int:
    """Points whose faces do not all hang together over the edges at that point."""
    n_faces = len(mesh.faces)
    directed = directed_edges(mesh)
    side = np.arange(3 * n_faces)
    face, start = side % n_faces, side // n_faces
    ends = np.stack([3 * face + start, 3 * face + (start + 1) % 3], axis=1)  # corners at the two ends of each side
    ends = np.where((directed[:, 0] < directed[:, 1])[:, None], ends, ends[:, ::-1])
    edges = np.sort(directed, axis=1)
    order = np.lexsort((edges[:, 1], edges[:, 0]))
    same = (edges[order][1:] == edges[order][:-1]).all(axis=1)
    first, second = ends[order[:-1][same]].reshape(-1), ends[order[1:][same]].reshape(-1)
    graph = coo_matrix((np.ones(len(first), dtype=np.int8), (first, second)), shape=(3 * n_faces, 3 * n_faces))
    n_fans, fan = connected_components(graph, directed=False)
    point = np.zeros(n_fans, dtype=np.int64)
    point[fan] = mesh.faces.reshape(-1)
    return int((np.bincount(point) > 1).sum()) if n_fans else 0


def _uv_range(found: MeshFile) -> tuple[float, float] | None:
    """(least, greatest) of the texture coordinates that are finite."""
    finite = np.zeros(0) if found.uv is None else found.uv[np.isfinite(found.uv)]
    return (float(finite.min()), float(finite.max())) if len(finite) else None


def _stray_coordinates(uv_range: tuple[float, float] | None) -> list[str]:
    if uv_range is None or (uv_range[0] >= -UV_TOLERANCE and uv_range[1] <= 1 + UV_TOLERANCE):
        return []
    return [f"texture coordinates leave 0 to 1: {uv_range[0]:.4g} to {uv_range[1]:.4g}"]


def _surface_problems(topology: Topology, n_bad: int) -> list[str]:
    counted = {
        "vertices are not finite": n_bad,
        "faces have no area": topology.degenerate_faces,
        "faces are there twice": topology.duplicate_faces,
        "edges belong to one face only: the surface is open": topology.open_edges,
        "edges belong to more than two faces": topology.crowded_edges,
        "edges join faces that wind against each other": topology.twisted_edges,
        "points hold bodies together that touch nowhere else": topology.pinched_points,
    }
    problems = [f"{count} {words}" for words, count in counted.items() if count]
    if topology.watertight and topology.volume <= 0:
        problems.append("the faces look inward")
    elif topology.inward_bodies:
        problems.append(f"{topology.inward_bodies} of {topology.bodies} bodies are inside out")
    return problems


def _normal_problems(found: MeshFile, points: np.ndarray) -> list[str]:
    if found.normals is None:
        return []
    finite = np.isfinite(found.normals).all(axis=(1, 2))
    problems = [] if finite.all() else [f"{(~finite).sum()} faces have normals that are not finite"]
    mesh = Mesh(points, found.faces[finite])
    along = np.einsum("fci,fi->fc", found.normals[finite], face_crosses(mesh))
    areas = face_areas(mesh)
    if areas[(along < 0).all(axis=1)].sum() > AGAINST * areas[(along != 0).any(axis=1)].sum():
        problems.append("the normals look away from the faces")
    return problems


def _texture_problems(found: MeshFile) -> list[str]:
    problems = []
    if found.uv is not None and not (finite := np.isfinite(found.uv).all(axis=1)).all():
        problems.append(f"{(~finite).sum()} texture coordinates are not finite")
    elif found.uv is not None and len(found.uv) and np.ptp(found.uv, axis=0).max() <= UV_TOLERANCE:
        problems.append("the texture coordinates are all the same")
    if found.textures and found.uv is None:
        problems.append("there are textures but no texture coordinates")
    problems += [f"{texture.role} {texture.name!r} cannot be read" for texture in found.textures if not texture.width]
    return problems


def inspection_record(inspection: Inspection) -> dict[str, object]:
    """Plain JSON values of everything in an inspection, with the size in metres where the unit is known."""
    size = [high - low for low, high in zip(inspection.low, inspection.high, strict=True)]
    record = {
        **asdict(inspection),
        "path": str(inspection.path),
        "watertight": inspection.topology.watertight,
        "manifold": inspection.topology.manifold,
        "size": size,
        "size_m": None if inspection.metres is None else [inspection.metres * length for length in size],
        "sound": inspection.sound,
        "not_checked": UNCHECKED,
    }
    return {key: _plain(value) for key, value in record.items()}


def _plain(value: object) -> object:
    """`value` as JSON knows it: null for numbers that are none, lists for vectors, text for what else there is."""
    if isinstance(value, np.generic):
        return _plain(value.item())
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    try:
        return [
            _plain(each) for each in cast("Iterable[object]", value)
        ]  # USD's vectors do not say that they have items
    except TypeError:
        return str(value)


def format_inspection(inspection: Inspection) -> str:
    """A table for people, the verdict last."""
    topology, unit = inspection.topology, UNIT_NAMES.get(inspection.metres or 0.0, "units")
    size = np.subtract(inspection.high, inspection.low)
    metres = "the unit is not said" if inspection.metres is None else f"{_numbers(size * inspection.metres)} m"
    uv = "none" if inspection.uv_range is None else "{:.4g} to {:.4g}".format(*inspection.uv_range)
    lost = "cannot be read"
    rows = [
        ("file", str(inspection.path)),
        ("faces", f"{inspection.faces}"),
        ("vertices", f"{inspection.vertices} ({topology.points} points, seams welded)"),
        ("bodies", f"{topology.bodies}"),
        ("watertight", _yes(topology.watertight)),
        ("manifold", _yes(topology.manifold)),
        ("bad faces", f"{topology.degenerate_faces} without area, {topology.duplicate_faces} double"),
        ("bounds", f"{_numbers(inspection.low)} to {_numbers(inspection.high)} {unit}"),
        ("size", metres),
        ("up", inspection.up or "not said"),
        ("UV", uv),
        ("colours", "at the vertices" if inspection.vertex_colors else "by texture" if inspection.textures else "none"),
        ("materials", ", ".join(inspection.materials) or "none"),
    ]
    for texture in inspection.textures:
        seen = f"{texture.width} x {texture.height} {texture.format}" if texture.width else lost
        rows.append(("texture", f"{texture.role}: {texture.name}, {seen}"))
    rows += [(f"says {key}", str(value)) for key, value in inspection.metadata.items()]
    rows += [("problem", problem) for problem in inspection.problems]
    rows += [("note", note) for note in inspection.notes]
    rows += [("not checked", words) for words in UNCHECKED]
    rows.append(("verdict", "sound" if inspection.sound else "not sound"))
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in rows)


def _numbers(values: tuple[float, ...] | np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
