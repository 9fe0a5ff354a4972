"""Renders of a coloured or textured mesh: turntables of an exported asset, comparisons, refinement of its texture."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nerf_bridge.ops.backend import check_tensor
from nerf_bridge.ops.raster import Raster, clip_positions, interpolate_at, rasterize
from nerf_bridge.ops.texture import look_up
from nerf_bridge.scene.cameras import Cameras
from nerf_bridge.scene.shading import shade

PRIOR_LIGHT = (0.3, -0.5, 0.8)  # world, towards the light, normalised where used; as in cuda_ext/raster_cpu.cpp
PRIOR_AMBIENT = 0.55
WHITE = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class FaceColors:
    """colors [f, 3] in 0..1, one for each face."""

    colors: Tensor


@dataclass(frozen=True)
class VertexColors:
    """colors [v, 3] in 0..1, blended over each face."""

    colors: Tensor


@dataclass(frozen=True)
class Texture:
    """uvs [v, 2], v up (row 0 of the image is at v = 1); image [h, w, 3] in 0..1, sampled bilinearly, edges held."""

    uvs: Tensor
    image: Tensor


MeshLook = FaceColors | VertexColors | Texture


@dataclass(frozen=True)
class ColoredMesh:
    """What `shade_mesh` renders: vertices [v, 3] world, faces [f, 3] integer vertex indices, and its colours."""

    vertices: Tensor
    faces: Tensor
    look: MeshLook

    def to(self, device: torch.device | str) -> ColoredMesh:
        """The same mesh on `device`, where it is then rendered."""
        tensors = {name: value.to(device) for name, value in vars(self.look).items()}
        look = replace(self.look, **tensors)
        return ColoredMesh(self.vertices.to(device), self.faces.to(device), look)


def shade_mesh(
    mesh: ColoredMesh,
    cameras: Cameras,
    size: int | tuple[int, int],
    backend: str,
    background: Tensor | tuple[float, float, float] = WHITE,
    supersample: int = 4,
    lit: bool = False,
    light_dir: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Render a mesh from some cameras, antialiased. Differentiable in the mesh's colours, not in its shape.

    Args:
        mesh: its faces are seen from both sides; it decides the device.
        cameras: b views.
        size: pixels (height, width), or one number for both.
        backend: of `rasterize`: "cpu", "cuda" or "torch".
        background: [3], [b, 3] or [b, h, w, 3] in 0..1.
        supersample: samples across one pixel, averaged with equal weight, at silhouettes too.
        lit: multiply by the fixed world light of the embedded prior's renders (`prior_shading`).
        light_dir: [b, 3] unit directions to a far light, whose lambertian shading (`shade`) the colours get; or None.
    Returns:
        (images [b, h, w, 3] in 0..1 over the background, coverage [b, h, w] in 0..1).
    Raises:
        ValueError: wrong shapes, an index or a size out of range, an unknown backend.
        UserError: the C++ kernels cannot be loaded.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width, supersample) < 1:
        raise ValueError(f"expected size and supersample of at least 1, got {size} and {supersample}")
    _check_look(mesh)
    device = mesh.vertices.device
    behind = torch.as_tensor(background, dtype=torch.float32, device=device)
    if behind.dim() < 4:
        behind = behind.expand(len(cameras), 3)[:, None, None]
    on_device = cameras.to(device)
    positions = clip_positions(mesh.vertices, on_device, aspect=width / height)
    images, coverage = [], []
    for index in range(len(cameras)):
        raster = rasterize(positions[index], mesh.faces, height * supersample, width * supersample, backend)
        seen = _Seen.of(raster)
        color = _sample_colors(seen, mesh)
        if lit or light_dir is not None:
            normals = _seen_normals(seen, mesh, on_device.c2w[index, :3, 3])
            color = color * prior_shading(normals)[:, None] if lit else color
            color = color if light_dir is None else shade(color, normals, light_dir[[index]].to(normals), "lambertian")
        premultiplied = torch.zeros_like(raster.barycentrics).view(-1, 3).index_copy(0, seen.pixel, color)
        premultiplied = premultiplied.view(raster.barycentrics.shape).permute(2, 0, 1)
        coverage.append(F.avg_pool2d(raster.covered.float()[None], supersample)[0])
        images.append(F.avg_pool2d(premultiplied, supersample).permute(1, 2, 0))
        images[-1] = images[-1] + (1.0 - coverage[-1][..., None]) * behind[index]
    if not images:
        return torch.empty((0, height, width, 3), device=device), torch.empty((0, height, width), device=device)
    return torch.stack(images), torch.stack(coverage)


def prior_shading(normals: Tensor) -> Tensor:
    """Brightness of surfaces in the embedded prior's renders: 0.55 + 0.45 (0.5 + 0.5 n . L), L fixed in the world.

    Args:
        normals: [..., 3] unit, turned to the camera.
    Returns:
        [...] in 0.55..1.
    """
    light = F.normalize(torch.tensor(PRIOR_LIGHT, dtype=normals.dtype, device=normals.device), dim=0)
    return PRIOR_AMBIENT + (1.0 - PRIOR_AMBIENT) * (0.5 + 0.5 * (normals @ light))


def face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals [f, 3] of triangles, outward for counter-clockwise corners; 0 for degenerate ones."""
    corners = vertices[faces.to(vertices.device).long()].double()
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = normals.norm(dim=-1, keepdim=True)
    return torch.where(length > 0.0, normals / length, torch.zeros_like(normals)).to(vertices.dtype)


@dataclass(frozen=True)
class _Seen:
    """The n covered pixels: their flat index, the face there and its barycentrics [n, 3]."""

    pixel: Tensor
    face_index: Tensor
    barycentrics: Tensor

    @staticmethod
    def of(raster: Raster) -> _Seen:
        pixel = raster.covered.flatten().nonzero()[:, 0]
        return _Seen(pixel, raster.face_index.flatten()[pixel].long(), raster.barycentrics.view(-1, 3)[pixel])


def _seen_normals(seen: _Seen, mesh: ColoredMesh, eye: Tensor) -> Tensor:
    """[n, 3] normal of the face at each covered pixel, turned to the eye [3]."""
    normals = face_normals(mesh.vertices, mesh.faces)
    to_eye = eye.to(normals) - mesh.vertices[mesh.faces[:, 0].to(normals.device).long()]
    facing = torch.where((normals * to_eye).sum(dim=-1, keepdim=True) < 0.0, -normals, normals)
    return facing[seen.face_index]


def _sample_colors(seen: _Seen, mesh: ColoredMesh) -> Tensor:
    """[n, 3] unlit colour of the surface at each covered pixel."""
    look, device = mesh.look, seen.pixel.device
    if isinstance(look, FaceColors):
        return look.colors.to(device).float()[seen.face_index]
    if isinstance(look, VertexColors):
        return interpolate_at(seen.face_index, seen.barycentrics, mesh.faces, look.colors.to(device).float())
    uv = interpolate_at(seen.face_index, seen.barycentrics, mesh.faces, look.uvs.to(device).float())
    return look_up(look.image.to(device).float(), uv)


def _check_look(mesh: ColoredMesh) -> None:
    look, n_vertices = mesh.look, len(mesh.vertices)
    if isinstance(look, FaceColors):
        check_tensor("look.colors", look.colors, (len(mesh.faces), 3))
    elif isinstance(look, VertexColors):
        check_tensor("look.colors", look.colors, (n_vertices, 3))
    else:
        check_tensor("look.uvs", look.uvs, (n_vertices, 2))
        check_tensor("look.image", look.image, (None, None, 3))
