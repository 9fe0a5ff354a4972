"""From an OBJ with materials to a few thousand faces with one colour each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nerf_bridge.prior.data.decimate import decimate_pieces, share_budget, weld, weld_corners
from nerf_bridge.prior.data.model import face_areas
from nerf_bridge.prior.data.obj import Material, ObjMesh
from nerf_bridge.prior.data.textures import ColourCloud, build_colour_cloud, triangle_normals

MAX_FACES = 4000  # after decimation
MAX_PAINTED_FACES = 6500  # after splitting textured faces
MIN_EDGE = 0.04  # textured faces are not split below this edge length (about 1.2 pixels of a 64 x 64 render)
COLOUR_SPREAD = 0.05  # split a face when its sampled colours spread more (standard deviation, 0..1)
OPAQUE = 0.65  # less opaque materials are glass
AIR = 0.15  # faces whose texture is less opaque are left out
INVISIBLE = 0.02
PALE_GLASS = np.array([0.66, 0.79, 0.87])

# Barycentric sample points of a face: the middle, towards the corners, towards the edges.
_SAMPLES = np.array([[1, 1, 1], [4, 1, 1], [1, 4, 1], [1, 1, 4], [3, 3, 1], [3, 1, 3], [1, 3, 3]], dtype=np.float64)
_SAMPLES /= _SAMPLES.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Group:
    """The faces of one material: vertices [v, 3] float64, faces [f, 3] int64, and its colour source."""

    material: Material
    vertices: np.ndarray
    faces: np.ndarray
    cloud: ColourCloud | None


@dataclass(frozen=True)
class PaintedMesh:
    """vertices [v, 3] float64, faces [f, 3] int64, colors [f, 3] in 0..1, materials [f] int64 (index of the group);
    for each group g its name (with its texture's) and whether it is glass [g] bool."""

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray
    materials: np.ndarray
    material_names: list[str]
    is_glass: np.ndarray


def paint(mesh: ObjMesh, vertices: np.ndarray, seed: int, keep_glass: bool = True) -> PaintedMesh:
    """Decimate a model and bake its materials into face colours.

    Args:
        mesh: the model as read.
        vertices: [v, 3] its vertices in world space (replacing the file's).
        seed: seed of the texture sampling and of the thinning of foliage.
        keep_glass: show transparent materials as pale surfaces; otherwise leave them out.

    Returns:
        The painted mesh; degenerate and invisible faces are gone.

    Raises:
        ValueError: if nothing visible remains.
    """
    rng = np.random.default_rng(seed)
    groups = split_groups(mesh, vertices, OPAQUE if not keep_glass else INVISIBLE, rng)
    groups = decimate_groups(groups, MAX_FACES, rng)
    budget = MAX_PAINTED_FACES - sum(len(group.faces) for group in groups)
    painted = []
    for group in sorted(groups, key=lambda g: -len(g.faces)):
        colored = paint_group(group, len(group.faces) + max(budget, 0))
        budget -= max(len(colored[1]) - len(group.faces), 0)
        painted.append((group, *colored))
    return _merge(painted)


def split_groups(mesh: ObjMesh, vertices: np.ndarray, min_opacity: float, rng: np.random.Generator) -> list[Group]:
    """Split by material, weld equal positions, drop degenerate faces and materials less opaque than min_opacity."""
    groups = []
    for index, material in enumerate(mesh.materials):
        chosen = (mesh.face_materials == index) & (face_areas(vertices, mesh.faces) > 1e-10)
        if material.opacity < min_opacity or not chosen.any():
            continue
        faces, face_uvs = mesh.faces[chosen], mesh.face_uvs[chosen]
        cloud = None
        with_uv = ((face_uvs >= 0) & (face_uvs < len(mesh.uvs))).all(axis=1)
        if material.texture is not None and with_uv.any():
            cloud = build_colour_cloud(vertices[faces[with_uv]], mesh.uvs[face_uvs[with_uv]], material.texture, rng)
        groups.append(Group(material, *weld(vertices, faces), cloud))
    return groups


def decimate_groups(groups: list[Group], max_faces: int, rng: np.random.Generator) -> list[Group]:
    """Bring the total to about max_faces.

    Budgets follow the square root of face count times area, so that neither a tiny ornament with many faces nor a
    large plain wall takes all.
    """
    groups = [group for group in groups if len(group.faces)]
    counts = np.array([len(group.faces) for group in groups], dtype=np.float64)
    if counts.sum() <= max_faces:
        return groups
    areas = np.array([face_areas(group.vertices, group.faces).sum() for group in groups])
    budgets = share_budget(counts, np.sqrt(counts * np.maximum(areas, 1e-9)), max_faces)
    smaller = [decimate_pieces(g.vertices, g.faces, int(b), rng) for g, b in zip(groups, budgets, strict=True)]
    painted = [Group(g.material, *mesh, g.cloud) for g, mesh in zip(groups, smaller, strict=True)]
    return [group for group in painted if len(group.faces)]


def paint_group(group: Group, max_faces: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give each face of a group its colour; split textured faces first where the texture shows.

    Returns:
        vertices [v, 3], faces [f, 3], colors [f, 3] in 0..1.
    """
    material = group.material
    if group.cloud is None:
        color = _glaze(_plain_colour(material), material.opacity)
        return group.vertices, group.faces, np.tile(color, (len(group.faces), 1))
    corners = split_by_colour(group.vertices[group.faces], group.cloud, max_faces)
    rgba = sample_faces(corners, group.cloud)
    alpha = rgba[..., 3:].mean(axis=1)
    color = (rgba[..., :3] * rgba[..., 3:]).sum(axis=1) / np.maximum(rgba[..., 3:].sum(axis=1), 1e-6)
    color = color * _texture_gain(material, rgba)
    kept = alpha[:, 0] > AIR
    vertices, faces = weld_corners(shrink(corners, np.sqrt(alpha[:, 0]))[kept])
    return vertices, faces, _glaze(color[kept], material.opacity)


def shrink(corners: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Scale each face [f, 3, 3] about its middle by scale [f], so that a partly cut-out face covers what it should."""
    middle = corners.mean(axis=1, keepdims=True)
    scale = np.where(scale > 0.97, 1.0, scale)
    return middle + (corners - middle) * scale[:, None, None]


def _plain_colour(material: Material) -> np.ndarray:
    """The colour of a material without texture: greys are lifted, since exporters dim white to 0.64 or 0.8."""
    color = np.array(material.diffuse)
    if material.texture_missing and color.max() < 0.05:
        return np.full(3, 0.1)
    if np.ptp(color) < 0.06 and color.min() >= 0.6:
        return np.minimum(color * 1.2, 0.97)
    return color


def _glaze(color: np.ndarray, opacity: float) -> np.ndarray:
    """Glass has no see-through here: it shows as a pale surface with a hint of its own colour."""
    return color if opacity >= OPAQUE else 0.25 * color + 0.75 * PALE_GLASS


def _texture_gain(material: Material, rgba: np.ndarray) -> np.ndarray:
    """Exports disagree on whether Kd multiplies the texture; only a grey texture is coloured by a coloured Kd."""
    diffuse = np.array(material.diffuse)
    texture_is_grey = float(np.ptp(rgba[..., :3], axis=-1).mean()) < 0.06
    if texture_is_grey and np.ptp(diffuse) > 0.15:
        return diffuse / diffuse.max()
    return np.ones(3)


def sample_faces(corners: np.ndarray, cloud: ColourCloud) -> np.ndarray:
    """Look up the colours at seven points of each face: corners [f, 3, 3] -> [f, 7, 4]."""
    points = np.einsum("sk,fkd->fsd", _SAMPLES, corners)
    normals = np.broadcast_to(triangle_normals(corners)[0][:, None], points.shape)
    return cloud.lookup(points, normals)


def split_by_colour(corners: np.ndarray, cloud: ColourCloud, max_faces: int) -> np.ndarray:
    """Bisect the longest edges of faces whose colours differ, the worst first, until max_faces: -> [g, 3, 3]."""
    done: list[np.ndarray] = []
    n_done = 0
    active = corners
    while len(active):
        rgba = sample_faces(active, cloud)
        edges = np.linalg.norm(active - np.roll(active, -1, axis=1), axis=2)  # edge k: corner k -> k + 1
        spread = rgba.std(axis=1).max(axis=1)
        wanted = (spread > COLOUR_SPREAD) & (edges.max(axis=1) > MIN_EDGE)
        room = max_faces - n_done - len(active)
        if wanted.sum() > room:
            order = np.argsort(-(spread * edges.max(axis=1) ** 2) * wanted, kind="stable")
            wanted = np.zeros(len(active), dtype=bool)
            wanted[order[: max(room, 0)]] = True
        done.append(active[~wanted])
        n_done += len(done[-1])
        active = _bisect(active[wanted], edges[wanted].argmax(axis=1))
    return np.concatenate([*done, active])


def _bisect(corners: np.ndarray, edge: np.ndarray) -> np.ndarray:
    row = np.arange(len(corners))
    a, b, c = (corners[row, (edge + k) % 3] for k in range(3))
    middle = 0.5 * (a + b)
    return np.concatenate([np.stack([a, middle, c], axis=1), np.stack([middle, b, c], axis=1)])


def _merge(painted: list[tuple[Group, np.ndarray, np.ndarray, np.ndarray]]) -> PaintedMesh:
    if not painted or sum(len(faces) for _, _, faces, _ in painted) == 0:
        raise ValueError("nothing visible remains of the model")
    offsets = np.cumsum([0] + [len(vertices) for _, vertices, _, _ in painted])
    return PaintedMesh(
        vertices=np.concatenate([vertices for _, vertices, _, _ in painted]),
        faces=np.concatenate([faces + o for (_, _, faces, _), o in zip(painted, offsets, strict=False)]),
        colors=np.concatenate([colors for _, _, _, colors in painted]),
        materials=np.concatenate([np.full(len(f), k) for k, (_, _, f, _) in enumerate(painted)]),
        material_names=[f"{group.material.name} {group.material.texture_name}" for group, _, _, _ in painted],
        is_glass=np.array([group.material.opacity < OPAQUE for group, _, _, _ in painted]),
    )
