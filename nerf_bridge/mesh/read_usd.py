"""A USD stage read with usd-core: every mesh of it, its textures and metadata."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from nerf_bridge.errors import UserError
from nerf_bridge.mesh.mesh_file import FoundTexture, MeshFile, found_texture
from nerf_bridge.mesh.usd import require_usd

USD_SUFFIXES = (".usdz", ".usd", ".usda", ".usdc")


def read_usd(path: Path) -> MeshFile:
    """Read the meshes of the stage at `path`.

    Raises:
        UserError: usd-core is not installed, or `path` is no stage.
    """
    require_usd(f"reading {path}")
    from pxr import Tf, Usd, UsdGeom, UsdShade

    try:
        stage = Usd.Stage.Open(str(path))
    except Tf.ErrorException as error:
        raise UserError(f"cannot read a mesh from {path}: {str(error).strip().splitlines()[-1].strip()}") from None
    prims = list(stage.Traverse())
    parts = [_geometry(UsdGeom.Mesh(prim)) for prim in prims if prim.IsA(UsdGeom.Mesh)]
    starts = np.cumsum([0] + [len(points) for points, _, _ in parts])
    coordinates = [uv for _, _, uv in parts if uv is not None]
    meshes = [UsdGeom.Mesh(prim) for prim in prims if prim.IsA(UsdGeom.Mesh)]
    return MeshFile(
        vertices=np.concatenate([points for points, _, _ in parts] or [np.zeros((0, 3))]),
        faces=np.concatenate(
            [faces + start for (_, faces, _), start in zip(parts, starts, strict=False)]
            or [np.zeros((0, 3), dtype=np.int64)]
        ),
        uv=np.concatenate(coordinates) if coordinates else None,
        vertex_colors=any(mesh.GetDisplayColorPrimvar().HasValue() for mesh in meshes),
        materials=tuple(prim.GetName() for prim in prims if prim.IsA(UsdShade.Material)),
        textures=tuple(_texture(path, UsdShade.Shader(prim)) for prim in prims if _is_texture(prim)),
        metadata=dict(stage.GetRootLayer().customLayerData),
        up=str(UsdGeom.GetStageUpAxis(stage)).lower(),
        metres=UsdGeom.GetStageMetersPerUnit(stage),
    )


def _geometry(mesh: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Points [v, 3] where they stand in the stage, triangles [f, 3], and texture coordinates [n, 2] or None."""
    from pxr import Usd, UsdGeom

    points = np.array(mesh.GetPointsAttr().Get() or np.zeros((0, 3)), dtype=np.float64).reshape(-1, 3)
    to_world = np.array(UsdGeom.Xformable(mesh).ComputeLocalToWorldTransform(Usd.TimeCode.Default()))
    standing = points @ to_world[:3, :3] + to_world[3, :3]  # row vectors, as everywhere in USD
    counts = np.array(mesh.GetFaceVertexCountsAttr().Get() or [], dtype=np.int64)
    indices = np.array(mesh.GetFaceVertexIndicesAttr().Get() or [], dtype=np.int64)
    triangles = _fans(counts, indices)
    if mesh.GetOrientationAttr().Get() == UsdGeom.Tokens.leftHanded:
        triangles = triangles[:, ::-1]
    primvar = UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st")
    uv = primvar.ComputeFlattened() if primvar and primvar.HasValue() else None
    return standing, triangles, None if uv is None else np.array(uv, dtype=np.float64).reshape(-1, 2)


def _fans(counts: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """[f, 3] triangles of polygons of `counts` [n] corners, which are listed in `indices` one after the other."""
    starts = np.cumsum(counts) - counts
    n_triangles = np.maximum(counts - 2, 0)
    start = np.repeat(starts, n_triangles)
    number = np.arange(len(start)) - np.repeat(np.cumsum(n_triangles) - n_triangles, n_triangles)
    return np.stack([indices[start], indices[start + number + 1], indices[start + number + 2]], axis=1)


def _is_texture(prim: Any) -> bool:
    from pxr import UsdShade

    return prim.IsA(UsdShade.Shader) and UsdShade.Shader(prim).GetIdAttr().Get() == "UsdUVTexture"


def _texture(path: Path, shader: Any) -> FoundTexture:
    given = shader.GetInput("file").Get() if shader.GetInput("file") else None
    name = given.path if given is not None else ""
    return found_texture(shader.GetPrim().GetName(), name, _packed(path, name))


def _packed(path: Path, name: str) -> bytes | None:
    """The content of the file `name` in the archive `path`, or beside it where it is none."""
    try:
        if not zipfile.is_zipfile(path):
            return (path.parent / name).read_bytes()
        with zipfile.ZipFile(path) as archive:
            return archive.read(name.removeprefix("./"))
    except (OSError, KeyError, zipfile.BadZipFile):
        return None
