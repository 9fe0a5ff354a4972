"""What is in a mesh file, and whether it is sound: closed, manifold, outward, with textures that are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from nerf_bridge.mesh.clean import weld
from nerf_bridge.mesh.data import Mesh
from nerf_bridge.mesh.geometry import directed_edges, face_areas, face_bodies, face_volumes, keep_faces
from nerf_bridge.mesh.mesh_file import FoundTexture, MeshFile
from nerf_bridge.mesh.read import read_mesh

WELD = 1e-7
"""Vertices nearer than this fraction of the bounding box's diagonal are one point."""
NO_AREA = 1e-14
"""Faces of less than this fraction of the diagonal's square have no area; single precision knows no smaller ones."""
UV_TOLERANCE = 1e-6
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

    @property
    def sound(self) -> bool:
        """Nothing was found that a modeller, an engine or a slicer would have to repair."""
        return not self.problems


def inspect_file(path: Path) -> Inspection:
    """Look into the mesh file at `path`.

    Raises:
        UserError: it cannot be read, or holds no triangles.
    """
    found = read_mesh(path)
    finite = np.isfinite(found.vertices).all(axis=1)
    points = np.where(finite[:, None], found.vertices, 0.0)
    used = points[np.unique(found.faces[finite[found.faces].all(axis=1)])] if finite.any() else points[:1]
    low, high = used.min(axis=0), used.max(axis=0)
    topology = surface_topology(Mesh(points, found.faces))
    uv_range = None if found.uv is None else (float(found.uv.min()), float(found.uv.max()))
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
        problems=tuple(_problems(found, topology, int((~finite).sum()), uv_range)),
    )


def surface_topology(stored: Mesh) -> Topology:
    """Measure a surface whose vertices may be split along seams."""
    diagonal = float(np.linalg.norm(np.ptp(stored.vertices, axis=0)))
    mesh = weld(stored, max(WELD * diagonal, 1e-30))
    corners = np.sort(mesh.faces, axis=1)
    proper = np.asarray((np.diff(corners, axis=1) > 0).all(axis=1))
    flat = proper & (face_areas(mesh) <= NO_AREA * diagonal**2)
    mesh = keep_faces(mesh, proper)  # a face on a line has its sides all the same, one on an edge has none
    n_distinct = len(np.unique(corners[proper], axis=0))
    count, forward = _edges(mesh)
    return Topology(
        points=len(mesh.vertices),
        bodies=int(face_bodies(mesh).max(initial=-1)) + 1,
        degenerate_faces=int((~proper).sum() + flat.sum()),
        duplicate_faces=int(proper.sum()) - n_distinct,
        open_edges=int((count == 1).sum()),
        crowded_edges=int((count > 2).sum()),
        twisted_edges=int(((count == 2) & (forward != 1)).sum()),
        pinched_points=_pinched_points(mesh),
        volume=float(face_volumes(mesh).sum()),
    )


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


def _problems(found: MeshFile, topology: Topology, n_bad: int, uv_range: tuple[float, float] | None) -> list[str]:
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
    if uv_range is not None and (uv_range[0] < -UV_TOLERANCE or uv_range[1] > 1 + UV_TOLERANCE):
        problems.append(f"texture coordinates leave 0 to 1: {uv_range[0]:.4g} to {uv_range[1]:.4g}")
    if found.textures and found.uv is None:
        problems.append("there are textures but no texture coordinates")
    problems += [f"{texture.role} {texture.name!r} cannot be read" for texture in found.textures if not texture.width]
    return problems


def inspection_record(inspection: Inspection) -> dict[str, object]:
    """Plain JSON values of everything in an inspection, with the size in metres where the unit is known."""
    size = [high - low for low, high in zip(inspection.low, inspection.high, strict=True)]
    return {
        **asdict(inspection),
        "path": str(inspection.path),
        "metadata": dict(inspection.metadata),
        "watertight": inspection.topology.watertight,
        "manifold": inspection.topology.manifold,
        "size": size,
        "size_m": None if inspection.metres is None else [inspection.metres * length for length in size],
        "sound": inspection.sound,
    }


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
    rows.append(("verdict", "sound" if inspection.sound else "not sound"))
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in rows)


def _numbers(values: tuple[float, ...] | np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
