"""A USD stage read with usd-core: every mesh of it, its textures and metadata."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from nerf_bridge.mesh.mesh_file import FoundTexture, MeshFile, checked_faces, found_texture, joined_normals
from nerf_bridge.mesh.usd import require_usd

MAKER = "nerf_bridge"
USD_SUFFIXES = (".usdz", ".usd", ".usda", ".usdc")


def read_usd(path: Path) -> MeshFile:
    """Read the meshes of the stage at `path`.

    Raises:
        UserError: usd-core is not installed, or `path` is no stage.
        ValueError: the stage holds no consistent meshes.
    """
    require_usd(f"reading {path}")
    from pxr import Tf, Usd, UsdGeom, UsdShade

    try:
        stage = Usd.Stage.Open(str(path))
    except Tf.ErrorException as error:
        raise ValueError(_usd_cause(error)) from None
    prims = list(stage.Traverse())
    meshes = [UsdGeom.Mesh(prim) for prim in prims if prim.IsA(UsdGeom.Mesh)]
    parts = [_geometry(mesh) for mesh in meshes]
    starts = np.cumsum([0] + [len(points) for points, _, _ in parts])
    coordinates = [uv for uv in map(_coordinates, meshes) if uv is not None]
    metadata = dict(stage.GetRootLayer().customLayerData)
    return MeshFile(
        vertices=np.concatenate([points for points, _, _ in parts] or [np.zeros((0, 3))]),
        faces=np.concatenate(
            [faces + start for (_, faces, _), start in zip(parts, starts, strict=False)]
            or [np.zeros((0, 3), dtype=np.int64)]
        ),
        normals=joined_normals([faces for _, faces, _ in parts], [normals for _, _, normals in parts]),
        uv=np.concatenate(coordinates) if coordinates else None,
        vertex_colors=any(mesh.GetDisplayColorPrimvar().HasValue() for mesh in meshes),
        materials=tuple(prim.GetName() for prim in prims if prim.IsA(UsdShade.Material)),
        textures=tuple(
            [_texture(path, UsdShade.Shader(prim)) for prim in prims if _is_texture(prim)]
            + [lost for prim in prims if prim.IsA(UsdShade.Shader) for lost in _lost_inputs(UsdShade.Shader(prim))]
        ),
        metadata=metadata,
        up=str(UsdGeom.GetStageUpAxis(stage)).lower(),
        metres=UsdGeom.GetStageMetersPerUnit(stage),
        ours=metadata.get("generator") == MAKER,
    )


def _geometry(mesh: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Points [v, 3] where they stand in the stage, triangles [f, 3], and normals [f, 3, 3] of their corners or None."""
    from pxr import Usd, UsdGeom

    points = np.array(mesh.GetPointsAttr().Get() or np.zeros((0, 3)), dtype=np.float64).reshape(-1, 3)
    to_world = np.array(UsdGeom.Xformable(mesh).ComputeLocalToWorldTransform(Usd.TimeCode.Default()))
    standing = points @ to_world[:3, :3] + to_world[3, :3]  # row vectors, as everywhere in USD
    counts = np.array(mesh.GetFaceVertexCountsAttr().Get() or [], dtype=np.int64)
    indices = np.array(mesh.GetFaceVertexIndicesAttr().Get() or [], dtype=np.int64)
    if counts.sum() != len(indices):
        raise ValueError(f"its polygons have {counts.sum()} corners, but {len(indices)} are listed")
    corners = _fans(counts)
    mirrored = bool(np.linalg.det(to_world[:3, :3]) < 0)
    if mirrored != (mesh.GetOrientationAttr().Get() == UsdGeom.Tokens.leftHanded):
        corners = corners[:, ::-1]
    triangles = checked_faces(indices[corners], len(points))
    return standing, triangles, _normals(mesh, to_world[:3, :3], corners, triangles)


def _normals(mesh: Any, turn: np.ndarray, corners: np.ndarray, triangles: np.ndarray) -> np.ndarray | None:
    """[f, 3, 3] where the stage turns them; None unless there is one for each vertex or each corner."""
    from pxr import UsdGeom

    primvar = UsdGeom.PrimvarsAPI(mesh).GetPrimvar("normals")
    if primvar and primvar.HasValue():
        stored, interpolation = primvar.ComputeFlattened(), primvar.GetInterpolation()
    else:
        stored, interpolation = mesh.GetNormalsAttr().Get(), mesh.GetNormalsInterpolation()
    chosen = {UsdGeom.Tokens.vertex: triangles, UsdGeom.Tokens.faceVarying: corners}.get(interpolation)
    if not stored or chosen is None or chosen.max(initial=-1) >= len(stored):
        return None
    turned = np.array(stored, dtype=np.float64).reshape(-1, 3) @ np.linalg.pinv(turn).T
    return np.asarray(turned[chosen])


def _coordinates(mesh: Any) -> np.ndarray | None:
    """[n, 2] texture coordinates, or None."""
    from pxr import UsdGeom

    primvar = UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st")
    uv = primvar.ComputeFlattened() if primvar and primvar.HasValue() else None
    return None if uv is None else np.array(uv, dtype=np.float64).reshape(-1, 2)


def _usd_cause(error: Exception) -> str:
    """What USD says is wrong, without the place in its own source that it puts before that."""
    last = str(error).strip().splitlines()[-1].strip()
    return re.sub(r"^Error in '.*?' at line \d+ in file .*? : ", "", last).strip("'")


def _fans(counts: np.ndarray) -> np.ndarray:
    """[f, 3] triangles of polygons of `counts` [n] corners, as numbers in the list of all corners."""
    starts = np.cumsum(counts) - counts
    n_triangles = np.maximum(counts - 2, 0)
    start = np.repeat(starts, n_triangles)
    number = np.arange(len(start)) - np.repeat(np.cumsum(n_triangles) - n_triangles, n_triangles)
    return np.stack([start, start + number + 1, start + number + 2], axis=1)


def _is_texture(prim: Any) -> bool:
    from pxr import UsdShade

    return prim.IsA(UsdShade.Shader) and UsdShade.Shader(prim).GetIdAttr().Get() == "UsdUVTexture"


def _texture(path: Path, shader: Any) -> FoundTexture:
    given = shader.GetInput("file").Get() if shader.GetInput("file") else None
    name = given.path if given is not None else ""
    return found_texture(shader.GetPrim().GetName(), name, _packed(path, name))


def _lost_inputs(shader: Any) -> list[FoundTexture]:
    """The inputs of a shader that are connected to what is not in the stage."""
    stage = shader.GetPrim().GetStage()
    sources = [(each.GetBaseName(), each.GetAttr().GetConnections()) for each in shader.GetInputs()]
    lost = [(role, path) for role, paths in sources for path in paths if not stage.GetPrimAtPath(path.GetPrimPath())]
    return [found_texture(role, str(path), None) for role, path in lost]


def _packed(path: Path, name: str) -> bytes | None:
    """The content of the file `name` in the archive `path`, or beside it where it is none."""
    try:
        if not zipfile.is_zipfile(path):
            return (path.parent / name).read_bytes()
        with zipfile.ZipFile(path) as archive:
            return archive.read(name.removeprefix("./"))
    except (OSError, KeyError, zipfile.BadZipFile):
        return None
