"""Triangles to pixels: which face is seen where, with perspective-correct barycentrics, on a screen or in a texture.

The C++ and CUDA paths (`cuda_ext/raster_cpu.cpp`, `cuda_ext/raster_cuda.cu`) and the torch twin below follow
`cuda_ext/include/raster.h`: homogeneous edge functions in float64 (Olano & Greer 1997), both windings, top-left rule,
near plane at z/w = -1 and no far plane.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nerf_bridge.ops.backend import check_float, check_tensor, run_kernel
from nerf_bridge.scene.cameras import Cameras

NEAR = 0.05
FAR = 100.0
MAX_FRAGMENTS = 1 << 21  # (face, pixel) pairs that the torch twin looks at together: bounds its memory
_NOTHING = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Raster:
    """What each pixel's centre sees; row 0 is at the top.

    Attributes:
        face_index: [h, w] int32, -1 where nothing.
        barycentrics: [h, w, 3] float32, weights of the face's corners, perspective-correct, sum 1; 0 where nothing.
        depth: [h, w] float32, z/w (-1 at the near plane, 1 at the far plane), +inf where nothing.
    """

    face_index: Tensor
    barycentrics: Tensor
    depth: Tensor

    @property
    def covered(self) -> Tensor:
        """[h, w] bool, where some face is seen."""
        return self.face_index >= 0


def rasterize(positions: Tensor, faces: Tensor, height: int, width: int, backend: str) -> Raster:
    """Find the nearest face at each pixel centre. Not differentiable.

    Every pixel centre on an edge that two faces share belongs to exactly one of them. Equal depths go to the lower face
    index, so the result is the same at every run, for any number of threads and on the GPU. Faces that cross the near
    plane are cut there; degenerate ones, and those with a coordinate that is not finite, cover nothing.

    Args:
        positions: [v, 4] clip space (x, y, z, w), used as float32.
        faces: [f, 3] integer vertex indices, on any device; both windings are drawn.
        height, width: pixels.
        backend: "torch" (on the device of `positions`), or "cpu" or "cuda", whose device that must be.
    Returns:
        Raster on the device of `positions`.
    Raises:
        ValueError: wrong shape, an index out of range, an empty image, a backend unknown or of another device.
        UserError: the kernels cannot be loaded; says why and the remedy.
    """
    check_tensor("positions", positions, (None, 4))
    _check_faces(faces, len(positions))
    if height < 1 or width < 1:
        raise ValueError(f"expected height and width of at least 1, got {height} and {width}")
    points = positions.detach().float()
    check_float("positions", points, backend)
    if backend == "torch":
        return _rasterize_torch(points, faces.to(points.device), height, width)
    return _rasterize_kernel(points, faces, height, width, backend)


def rasterize_uv(uvs: Tensor, faces: Tensor, size: int, backend: str, rows: range | None = None) -> Raster:
    """Find the face at each texel centre of a square texture, or of some of its rows. Not differentiable.

    Args:
        uvs: [v, 2] texture coordinates, 0..1 inside the texture; v points up, so row 0 of the texture is at v = 1 and
            texel (row, column) has its centre at u = (column + 0.5) / size, v = 1 - (row + 0.5) / size.
        faces: [f, 3] integer indices into `uvs`; where they overlap the lower face index wins.
        size: texels across.
        backend: as in `rasterize`.
        rows: the rows to look at, one after the other; None: all.
    Returns:
        Raster, [rows, size], depth 0 where covered.
    Raises:
        ValueError, UserError: as `rasterize`.
    """
    check_tensor("uvs", uvs, (None, 2))
    first, n_rows = (0, size) if rows is None else (rows.start, len(rows))
    flat = uvs.detach().double() * 2.0 - 1.0
    across, up = flat[:, 0], (flat[:, 1] * size + (n_rows - size + 2 * first)) / n_rows
    positions = torch.stack([across, up, torch.zeros_like(up), torch.ones_like(up)], dim=-1)
    return rasterize(positions, faces, n_rows, size, backend)


def projection_matrix(fovy_rad: Tensor | float, aspect: float = 1.0, near: float = NEAR, far: float = FAR) -> Tensor:
    """OpenGL perspective projection: camera space (looking along -z) to clip space.

    Args:
        fovy_rad: any shape [...], full vertical field of view.
        aspect: width / height.
        near, far: distances along the view axis that map to z/w = -1 and 1, 0 < near < far.
    Returns:
        [..., 4, 4] float32.
    Raises:
        ValueError: near, far or aspect out of range.
    """
    if not (0.0 < near < far and aspect > 0.0):
        raise ValueError(f"expected 0 < near < far and aspect > 0, got near {near}, far {far}, aspect {aspect}")
    focal = 1.0 / torch.tan(torch.as_tensor(fovy_rad, dtype=torch.float64) / 2.0)
    matrix = focal.new_zeros((*focal.shape, 4, 4))
    matrix[..., 0, 0] = focal / aspect
    matrix[..., 1, 1] = focal
    matrix[..., 2, 2] = -(far + near) / (far - near)
    matrix[..., 2, 3] = -2.0 * far * near / (far - near)
    matrix[..., 3, 2] = -1.0
    return matrix.float()


def clip_positions(
    vertices: Tensor, cameras: Cameras, aspect: float = 1.0, near: float = NEAR, far: float = FAR
) -> Tensor:
    """World points in the clip space of each camera, for `rasterize`.

    Args:
        vertices: [v, 3] world.
        cameras: b cameras, on the device of `vertices`.
        aspect, near, far: as in `projection_matrix`.
    Returns:
        [b, v, 4] float32 (worked out in float64).
    Raises:
        ValueError: wrong shape; near, far or aspect out of range.
    """
    check_tensor("vertices", vertices, (None, 3))
    c2w = cameras.c2w.double()
    in_camera = (vertices.double()[None] - c2w[:, None, :3, 3]) @ c2w[:, :3, :3]
    homogeneous = torch.cat([in_camera, torch.ones_like(in_camera[..., :1])], dim=-1)
    projection = projection_matrix(cameras.fovy_rad, aspect, near, far).to(c2w)
    return (homogeneous @ projection.mT).float()


def interpolate(raster: Raster, faces: Tensor, values: Tensor) -> Tensor:
    """Values of the vertices at each pixel, see `interpolate_at`: [h, w, c], 0 where nothing."""
    if len(faces) == 0:
        return values.new_zeros((*raster.face_index.shape, values.shape[1]))
    return interpolate_at(raster.face_index.clamp_min(0), raster.barycentrics, faces, values)


def interpolate_at(face_index: Tensor, barycentrics: Tensor, faces: Tensor, values: Tensor) -> Tensor:
    """Values of the vertices at places of the surface: sum of barycentrics * values. Differentiable in `values`.

    Args:
        face_index: [...] integer, a face at each place.
        barycentrics: [..., 3].
        faces: [f, 3] integer indices into `values`.
        values: [v, c], on the device of the places.
    Returns:
        [..., c].
    """
    corners = faces.to(face_index.device).long()[face_index.long()]
    return (barycentrics[..., None].to(values.dtype) * values[corners]).sum(dim=-2)


def _check_faces(faces: Tensor, n_vertices: int) -> None:
    check_tensor("faces", faces, (None, 3))
    if faces.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"faces: expected dtype int32 or int64, got {faces.dtype}")
    if faces.numel() == 0:
        return
    low, high = torch.stack(faces.aminmax()).tolist()  # one wait for the GPU, not two
    if low < 0 or high >= n_vertices:
        raise ValueError(f"faces: expected indices in 0..{n_vertices - 1}, got {low}..{high}")


def _rasterize_kernel(positions: Tensor, faces: Tensor, height: int, width: int, backend: str) -> Raster:
    device = positions.device
    face_index = torch.empty((height, width), dtype=torch.int32, device=device)
    barycentrics = torch.empty((height, width, 3), device=device)
    depth = torch.empty((height, width), device=device)
    points = positions.contiguous()
    triangles = faces.to(device, torch.int32).contiguous()
    run_kernel(backend, "rasterize", points, triangles, len(triangles), height, width, face_index, barycentrics, depth)
    return Raster(face_index, barycentrics, depth)


# ---- the torch twin: bounding boxes become a packed list of (face, pixel) fragments, taken in groups ----


@dataclass(frozen=True)
class _Triangles:
    """Set-up triangles, in sample units px = 2 x + 1 - width, py = height - 1 - 2 y (`Triangle` in raster.h)."""

    faces: Tensor  # [n] int64, indices of the faces that may cover something
    edges: Tensor  # [n, 3, 3] float64, (a, b, c) of a px + b py + c, inside where positive
    depth_plane: Tensor  # [n, 3] float64, (a, b, c) of z/w
    crosses_near: Tensor  # [n] bool
    box: Tensor  # [n, 4] int64, first x, first y, columns, rows


def _rasterize_torch(positions: Tensor, faces: Tensor, height: int, width: int) -> Raster:
    triangles = _set_up(positions.double()[faces.long()], height, width)
    best = torch.full((height * width,), _NOTHING, dtype=torch.int64, device=positions.device)
    n_fragments = triangles.box[:, 2] * triangles.box[:, 3]
    group = n_fragments.cumsum(0) // MAX_FRAGMENTS
    start = 0
    for size in torch.unique_consecutive(group, return_counts=True)[1].tolist():
        _scan_group(triangles, torch.arange(start, start + size, device=best.device), height, width, best)
        start += size
    return _resolve(triangles, best, len(faces), height, width)


def _set_up(corners: Tensor, height: int, width: int) -> _Triangles:
    """Edge functions, depth planes and boxes of the faces with these clip corners [f, 3, 4] that can cover a pixel."""
    behind = corners[..., 2] + corners[..., 3] < 0.0
    xyw = corners[..., [0, 1, 3]]
    edges = torch.linalg.cross(xyw[:, [1, 2, 0]], xyw[:, [2, 0, 1]])
    determinant = (xyw[:, 0] * edges[:, 0]).sum(dim=-1)
    box = _boxes(corners, behind, height, width)
    possible = corners.isfinite().all(dim=2).all(dim=1) & ~behind.all(dim=1) & (box[:, 2:] > 0).all(dim=1)
    kept = (possible & (determinant != 0.0) & determinant.isfinite()).nonzero()[:, 0]
    corners, behind, determinant = corners[kept], behind[kept], determinant[kept]
    scale = torch.tensor([height, width, height * width], dtype=torch.float64, device=corners.device)
    edges = edges[kept] * determinant.sign()[:, None, None] * scale
    plane = (edges * corners[..., 2:3]).sum(dim=1) / (determinant.abs() * (width * height))[:, None]
    return _Triangles(kept, edges, plane, behind.any(dim=1), box[kept])


def _boxes(corners: Tensor, behind: Tensor, height: int, width: int) -> Tensor:
    """[f, 4]: first x, first y, columns, rows of the pixels that can be covered: all when a corner is behind."""
    size = torch.tensor([width, height], dtype=torch.float64, device=corners.device)
    ndc = corners[..., :2] / corners[..., 3:4]
    pixels = torch.stack([ndc[..., 0] + 1.0, 1.0 - ndc[..., 1]], dim=-1) * 0.5 * size
    pixels = pixels.nan_to_num(0.0)
    first = (pixels.amin(dim=1) - 0.51).clamp_min(0.0).minimum(size).ceil().long()
    last = (pixels.amax(dim=1) - 0.49).clamp_min(-1.0).minimum(size - 1).floor().long()
    whole = (behind | (corners[..., 3] <= 0.0)).any(dim=1, keepdim=True)
    first = torch.where(whole, torch.zeros_like(first), first)
    last = torch.where(whole, (size - 1).long(), last)
    return torch.cat([first, (last - first + 1).clamp_min(0)], dim=-1)


def _scan_group(triangles: _Triangles, rows: Tensor, height: int, width: int, best: Tensor) -> None:
    """Lower `best` [h * w] (depth and face, packed into int64) by the fragments of some of the triangles."""
    box = triangles.box[rows]
    counts = box[:, 2] * box[:, 3]
    owner = torch.repeat_interleave(torch.arange(len(rows), device=best.device), counts)
    within = torch.arange(len(owner), device=best.device) - (counts.cumsum(0) - counts)[owner]
    x = box[owner, 0] + within % box[owner, 2]
    y = box[owner, 1] + within // box[owner, 2]
    edges = triangles.edges[rows][owner]
    values = _at(edges, x, y, height, width)
    top_left = (edges[..., 0] > 0.0) | ((edges[..., 0] == 0.0) & (edges[..., 1] < 0.0))
    inside = ((values > 0.0) | ((values == 0.0) & top_left)).all(dim=1)
    near_plane = triangles.depth_plane[rows] + torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64, device=best.device)
    in_front = _at(near_plane[owner], x, y, height, width) >= 0.0
    inside &= in_front | ~triangles.crosses_near[rows][owner]
    owner, x, y = owner[inside], x[inside], y[inside]
    depth = _at(triangles.depth_plane[rows][owner], x, y, height, width).float()
    best.scatter_reduce_(0, y * width + x, _pack(depth, triangles.faces[rows][owner]), "amin")


def _resolve(triangles: _Triangles, best: Tensor, n_faces: int, height: int, width: int) -> Raster:
    pixel = (best != _NOTHING).nonzero()[:, 0]
    face = best[pixel] & 0xFFFFFFFF
    row_of_face = torch.zeros(n_faces, dtype=torch.int64, device=best.device)
    row_of_face[triangles.faces] = torch.arange(len(triangles.faces), device=best.device)
    rows = row_of_face[face]
    x, y = pixel % width, pixel // width
    values = _at(triangles.edges[rows], x, y, height, width).clamp_min(0.0)
    total = values.sum(dim=1, keepdim=True)
    weights = torch.where(total > 0.0, values / total, torch.full_like(values, 1.0 / 3.0))
    face_index = torch.full((height * width,), -1, dtype=torch.int32, device=best.device)
    barycentrics = torch.zeros((height * width, 3), device=best.device)
    depth = torch.full((height * width,), torch.inf, device=best.device)
    face_index[pixel] = face.int()
    barycentrics[pixel] = weights.float()
    depth[pixel] = _at(triangles.depth_plane[rows], x, y, height, width).float()
    shape = (height, width)
    return Raster(face_index.reshape(shape), barycentrics.reshape(*shape, 3), depth.reshape(shape))


def _at(planes: Tensor, x: Tensor, y: Tensor, height: int, width: int) -> Tensor:
    """a px + (b py + c) for planes [n, (k,) 3] at the pixels x, y [n]."""
    px = (2 * x + 1 - width).double()
    py = (height - 1 - 2 * y).double()
    if planes.dim() == 3:
        px, py = px[:, None], py[:, None]
    return planes[..., 0] * px + (planes[..., 1] * py + planes[..., 2])


def _pack(depth: Tensor, face: Tensor) -> Tensor:
    """One int64 that sorts by depth, then by face: the float's bits are monotone once negative ones are turned over."""
    bits = (depth + 0.0).view(torch.int32)
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    return (ordered.long() << 32) | face
