"""Plain renders of a coloured or textured mesh: turntables of an exported asset, ground truth in comparisons."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nerf_bridge.ops.backend import check_tensor
from nerf_bridge.ops.raster import Raster, clip_positions, interpolate, rasterize
from nerf_bridge.scene.cameras import Cameras

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


def shade_mesh(
    mesh: ColoredMesh,
    cameras: Cameras,
    size: int | tuple[int, int],
    backend: str,
    background: Tensor | tuple[float, float, float] = WHITE,
    supersample: int = 4,
    lit: bool = False,
) -> tuple[Tensor, Tensor]:
    """Render a mesh from some cameras, antialiased. Differentiable in the mesh's colours, not in its shape.

    Args:
        mesh: its faces are seen from both sides; it decides the device.
        cameras: b views.
        size: pixels (height, width), or one number for both.
        backend: of `rasterize`: "cpu", "cuda" or "torch".
        background: [3] or [b, 3] in 0..1.
        supersample: samples across one pixel, averaged with equal weight.
        lit: multiply by the fixed world light of the embedded prior's renders (`prior_shading`).
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
    behind = torch.as_tensor(background, dtype=torch.float32, device=device).expand(len(cameras), 3)
    on_device = cameras.to(device)
    positions = clip_positions(mesh.vertices, on_device, aspect=width / height)
    images = torch.empty((len(cameras), height, width, 3), device=device)
    coverage = torch.empty((len(cameras), height, width), device=device)
    for index in range(len(cameras)):
        raster = rasterize(positions[index], mesh.faces, height * supersample, width * supersample, backend)
        color = _sample_colors(raster, mesh)
        if lit:
            color = color * _seen_shading(raster, mesh, on_device.c2w[index, :3, 3])
        covered = raster.covered.float()
        coverage[index] = F.avg_pool2d(covered[None], supersample)[0]
        premultiplied = F.avg_pool2d((color * covered[..., None]).permute(2, 0, 1), supersample).permute(1, 2, 0)
        images[index] = premultiplied + (1.0 - coverage[index, ..., None]) * behind[index]
    return images, coverage


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


def _seen_shading(raster: Raster, mesh: ColoredMesh, eye: Tensor) -> Tensor:
    """[h, w, 1] brightness of each pixel's face, its normal turned to the eye [3]; 1 where nothing."""
    if len(mesh.faces) == 0:
        return torch.ones_like(raster.depth)[..., None]
    normals = face_normals(mesh.vertices, mesh.faces)
    to_eye = eye.to(normals) - mesh.vertices[mesh.faces[:, 0].to(normals.device).long()]
    facing = torch.where((normals * to_eye).sum(dim=-1, keepdim=True) < 0.0, -normals, normals)
    shading = prior_shading(facing)[raster.face_index.clamp_min(0).long()]
    return torch.where(raster.covered, shading, torch.ones_like(shading))[..., None]


def _sample_colors(raster: Raster, mesh: ColoredMesh) -> Tensor:
    """[h, w, 3] unlit colour of each pixel's surface; of no meaning where nothing."""
    look, device = mesh.look, raster.depth.device
    if len(mesh.faces) == 0:
        return torch.zeros_like(raster.barycentrics)
    if isinstance(look, FaceColors):
        return look.colors.to(device).float()[raster.face_index.clamp_min(0).long()]
    if isinstance(look, VertexColors):
        return interpolate(raster, mesh.faces, look.colors.to(device).float())
    uv = interpolate(raster, mesh.faces, look.uvs.to(device).float())
    grid = torch.stack([uv[..., 0] * 2.0 - 1.0, 1.0 - uv[..., 1] * 2.0], dim=-1)
    image = look.image.to(device).float().permute(2, 0, 1)
    sampled = F.grid_sample(image[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)
    return sampled[0].permute(1, 2, 0)


def _check_look(mesh: ColoredMesh) -> None:
    look, n_vertices = mesh.look, len(mesh.vertices)
    if isinstance(look, FaceColors):
        check_tensor("look.colors", look.colors, (len(mesh.faces), 3))
    elif isinstance(look, VertexColors):
        check_tensor("look.colors", look.colors, (n_vertices, 3))
    else:
        check_tensor("look.uvs", look.uvs, (n_vertices, 2))
        check_tensor("look.image", look.image, (None, None, 3))
