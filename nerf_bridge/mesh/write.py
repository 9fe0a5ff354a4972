"""An asset to a file; the suffix of its name says in which format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nerf_bridge.config import MeshConfig
from nerf_bridge.errors import UserError
from nerf_bridge.mesh.data import Asset, UnwrappedMesh
from nerf_bridge.mesh.gltf import glb_file, gltf_files
from nerf_bridge.mesh.obj import obj_files
from nerf_bridge.mesh.placement import Up, place
from nerf_bridge.mesh.ply import ply_file
from nerf_bridge.mesh.seams import without_collapsed_faces
from nerf_bridge.mesh.stl import stl_file
from nerf_bridge.mesh.texture_files import SUFFIXES, side_name, side_stem
from nerf_bridge.mesh.usd import require_usd, usdz_file
from nerf_bridge.run.files import write_all

USUAL_UP: Mapping[str, Up] = {".glb": "y", ".gltf": "y", ".obj": "y", ".ply": "z", ".stl": "z", ".usdz": "y"}
"""The formats, each with the axis that points up where the common readers (Blender, slicers, AR viewers) expect it."""


def write_asset(path: Path, asset: Asset, settings: MeshConfig) -> UnwrappedMesh:
    """Write `asset` in the format of the suffix of `path`: all of its files, or none.

    Args:
        path: .glb, .gltf, .obj, .ply, .stl or .usdz; its folder must exist. Side files are named after it.
        asset: in the world's axes and the box's units.
        settings: height_m, pivot, up, texture_format and millimetres.

    Returns:
        The mesh that was written, in metres and in the file's axes.

    Raises:
        UserError: the format is unknown, cannot hold what the settings ask for, or needs a package that is missing.
        OSError: writing failed; old files stay as they were.
    """
    check_format(path, settings)
    up = file_up(path, settings)
    placed = place(asset.mesh, up, settings.height_m, settings.pivot)
    written = replace(asset, mesh=without_collapsed_faces(placed))
    write_all({path.parent / name: data for name, data in _files(path, written, settings, up).items()})
    return written.mesh


def check_format(path: Path, settings: MeshConfig) -> None:
    """Raise UserError unless the suffix of `path` names a format that can hold what `settings` ask for."""
    suffix = path.suffix.lower()
    if suffix not in USUAL_UP:
        raise UserError(f"cannot write a mesh to {path}: expected a name that ends in {', '.join(USUAL_UP)}")
    if suffix in (".glb", ".gltf") and settings.up == "z":
        raise UserError(
            f"mesh.up: y always points up in glTF, got z for {path}: leave it at auto, or write .obj or .usdz"
        )
    if suffix != ".stl" and settings.millimetres:
        raise UserError(f"mesh.millimetres: only STL can be written in millimetres, and {path} is none")
    if suffix == ".usdz":
        if settings.texture_format == "webp":
            raise UserError(f"mesh.texture_format: USDZ takes png or jpeg, got webp for {path}")
        require_usd(f"writing {path}")


def check_target(path: Path, settings: MeshConfig) -> None:
    """Raise UserError unless a mesh can be written to `path` as far as can be told before the work."""
    check_format(path, settings)
    if not path.parent.is_dir():
        raise UserError(f"cannot write a mesh to {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UserError(f"cannot write a mesh to {path}: it is a folder")
    for beside in _side_paths(path, settings):
        if beside.is_dir():
            raise UserError(f"cannot write a mesh to {path}: {beside}, which belongs to it, is a folder")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write a mesh to {path}: {path.parent} cannot be written")


def file_up(path: Path, settings: MeshConfig) -> Up:
    """The axis that points up in a file named `path`."""
    return USUAL_UP[path.suffix.lower()] if settings.up == "auto" else settings.up


def _side_paths(path: Path, settings: MeshConfig) -> list[Path]:
    """Where the files beside the one at `path` go."""
    library = {".obj": ".mtl", ".gltf": ".bin"}.get(path.suffix.lower())
    if library is None:
        return []
    roles = ("base_color", "normal") if settings.normal_map else ("base_color",)
    textures = [side_name(path.name, role, SUFFIXES[settings.texture_format]) for role in roles]
    return [path.parent / name for name in (side_stem(path.name) + library, *textures)]


def _files(path: Path, asset: Asset, settings: MeshConfig, up: Up) -> dict[str, bytes]:
    """The content of each file under its name, the one at `path` last."""
    textures = settings.texture_format
    match path.suffix.lower():
        case ".glb":
            return glb_file(path.name, asset, textures)
        case ".gltf":
            return gltf_files(path.name, asset, textures)
        case ".obj":
            return obj_files(path.name, asset, textures, up)
        case ".ply":
            return ply_file(path.name, asset, up)
        case ".stl":
            return stl_file(path.name, asset, up, settings.millimetres)
        case _:
            return usdz_file(path.name, asset, textures, up)
