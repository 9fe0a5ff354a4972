"""One textured mesh as USDZ: a USD stage and its textures in one uncompressed archive."""

from __future__ import annotations

import importlib.util
import io
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nerf_bridge.errors import UserError
from nerf_bridge.mesh.data import Asset, Material, UnwrappedMesh
from nerf_bridge.mesh.placement import Up
from nerf_bridge.mesh.seams import join_seams
from nerf_bridge.mesh.texture_files import TextureFile, TextureFormat, encode_material

if TYPE_CHECKING:
    from pxr import Usd, UsdShade

ALIGNMENT = 64
"""Bytes at whose multiples the content of each file of a USDZ archive starts."""
REMEDY = "install it with: pip install 'nerf-bridge[usd]' (or: pip install usd-core)"
TIME = (1980, 1, 1, 0, 0, 0)


def require_usd(what: str) -> None:
    """Raise UserError with the remedy unless usd-core is installed; `what` needs it, for example "writing a.usdz"."""
    if importlib.util.find_spec("pxr") is None:
        raise UserError(f"{what} needs the package usd-core: {REMEDY}")


def usdz_file(name: str, asset: Asset, texture_format: TextureFormat, up: Up) -> dict[str, bytes]:
    """The archive under its name; the same input gives the same bytes.

    Args:
        name: of the file.
        asset: in metres, in the axes of `up`; the metadata becomes the stage's customLayerData.
        texture_format: "png" or "jpeg", the two that the USDZ specification allows of ours.
        up: the stage's up axis.

    Raises:
        UserError: usd-core is not installed.
    """
    require_usd(f"writing {name}")
    textures = encode_material(asset.material, texture_format)
    stage = _stage(asset, textures, up)
    with tempfile.TemporaryDirectory(prefix="nerf-bridge-usd-") as folder:
        layer = Path(folder, "scene.usdc")
        stage.GetRootLayer().Export(str(layer))
        content = {layer.name: layer.read_bytes()}
    return {name: usdz_archive(content | {_inside(texture): texture.data for texture in textures})}


def usdz_archive(content: Mapping[str, bytes]) -> bytes:
    """Pack files, the stage first, as the USDZ specification asks: stored, each starting at a multiple of 64 bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, TIME)
            start = stream.tell() + 30 + len(name.encode("utf-8")) + 4
            padding = -start % ALIGNMENT
            entry.extra = b"\x86\x19" + padding.to_bytes(2, "little") + b"\0" * padding  # an unused extra field
            archive.writestr(entry, data)
    return stream.getvalue()


def _inside(texture: TextureFile) -> str:
    return f"textures/{texture.role}{texture.suffix}"


def _stage(asset: Asset, textures: list[TextureFile], up: Up) -> Usd.Stage:
    from pxr import Kind, Usd, UsdGeom, UsdShade

    stage = Usd.Stage.CreateInMemory()
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y if up == "y" else UsdGeom.Tokens.z)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    stage.GetRootLayer().customLayerData = _layer_data(asset.metadata)
    root = UsdGeom.Xform.Define(stage, "/object")
    stage.SetDefaultPrim(root.GetPrim())
    Usd.ModelAPI(root.GetPrim()).SetKind(Kind.Tokens.component)
    shape = UsdGeom.Mesh.Define(stage, "/object/mesh")
    _fill_mesh(shape, asset.mesh)
    material = _material(stage, "/object/surface", asset.material, textures)
    UsdShade.MaterialBindingAPI.Apply(shape.GetPrim()).Bind(material)
    return stage


def _layer_data(metadata: Mapping[str, object]) -> dict[str, object]:
    """USD holds text and numbers, but no None; anything else as text."""
    plain = {key: value for key, value in metadata.items() if value is not None}
    kept = {key: value if isinstance(value, str | int | float) else str(value) for key, value in plain.items()}
    return {"generator": "nerf_bridge", **kept}


def _fill_mesh(shape: Any, mesh: UnwrappedMesh) -> None:
    from pxr import Sdf, UsdGeom, Vt

    first, point = join_seams(mesh)
    positions = mesh.vertices[first].astype(np.float32)
    shape.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(positions))
    shape.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(mesh.faces), 3, dtype=np.int32)))
    shape.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(point[mesh.faces].reshape(-1).astype(np.int32)))
    shape.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(mesh.normals[first].astype(np.float32)))
    shape.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    shape.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    shape.CreateExtentAttr(Vt.Vec3fArray.FromNumpy(np.stack([positions.min(axis=0), positions.max(axis=0)])))
    st = UsdGeom.PrimvarsAPI(shape).CreatePrimvar("st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.faceVarying)
    st.Set(Vt.Vec2fArray.FromNumpy(mesh.uv.astype(np.float32)))
    st.SetIndices(Vt.IntArray.FromNumpy(mesh.faces.reshape(-1).astype(np.int32)))


def _material(stage: Usd.Stage, path: str, material: Material, textures: list[TextureFile]) -> UsdShade.Material:
    from pxr import Sdf, UsdShade

    made = UsdShade.Material.Define(stage, path)
    reader = UsdShade.Shader.Define(stage, f"{path}/uv")
    reader.CreateIdAttr("UsdPrimvarReader_float2")
    reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("st")
    coordinates = reader.CreateOutput("result", Sdf.ValueTypeNames.Float2)
    shader = UsdShade.Shader.Define(stage, f"{path}/preview")
    shader.CreateIdAttr("UsdPreviewSurface")
    shader.CreateInput("roughness", Sdf.ValueTypeNames.Float).Set(material.roughness)
    shader.CreateInput("metallic", Sdf.ValueTypeNames.Float).Set(material.metallic)
    for texture in textures:
        sampler = _sampler(stage, f"{path}/{texture.role}", texture, coordinates)
        role, kind = ("normal", "Normal3f") if texture.role == "normal" else ("diffuseColor", "Color3f")
        sampled = sampler.CreateOutput("rgb", Sdf.ValueTypeNames.Float3)
        shader.CreateInput(role, getattr(Sdf.ValueTypeNames, kind)).ConnectToSource(sampled)
    surface = shader.CreateOutput("surface", Sdf.ValueTypeNames.Token)
    made.CreateSurfaceOutput().ConnectToSource(surface)
    return made


def _sampler(stage: Usd.Stage, path: str, texture: TextureFile, coordinates: Any) -> UsdShade.Shader:
    from pxr import Gf, Sdf, UsdShade

    sampler = UsdShade.Shader.Define(stage, path)
    sampler.CreateIdAttr("UsdUVTexture")
    sampler.CreateInput("file", Sdf.ValueTypeNames.Asset).Set(Sdf.AssetPath(_inside(texture)))
    sampler.CreateInput("st", Sdf.ValueTypeNames.Float2).ConnectToSource(coordinates)
    for wrap in ("wrapS", "wrapT"):
        sampler.CreateInput(wrap, Sdf.ValueTypeNames.Token).Set("clamp")
    space = "raw" if texture.role == "normal" else "sRGB"
    sampler.CreateInput("sourceColorSpace", Sdf.ValueTypeNames.Token).Set(space)
    if texture.role == "normal":  # stored as (n + 1) / 2
        sampler.CreateInput("scale", Sdf.ValueTypeNames.Float4).Set(Gf.Vec4f(2, 2, 2, 1))
        sampler.CreateInput("bias", Sdf.ValueTypeNames.Float4).Set(Gf.Vec4f(-1, -1, -1, 0))
    return sampler
