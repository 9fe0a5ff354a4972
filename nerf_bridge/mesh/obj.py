"""One textured mesh as Wavefront OBJ, with its material library and textures beside it."""

from __future__ import annotations

import numpy as np

from nerf_bridge.mesh.data import Asset, Material
from nerf_bridge.mesh.notes import note_lines
from nerf_bridge.mesh.placement import Up
from nerf_bridge.mesh.seams import join_seams
from nerf_bridge.mesh.texture_files import TextureFile, TextureFormat, encode_material, side_name, side_stem

DIELECTRIC = 0.04
"""Reflectance at normal incidence of what is no metal, as in glTF 2.0."""
MATERIAL = "surface"


def obj_files(name: str, asset: Asset, texture_format: TextureFormat, up: Up) -> dict[str, bytes]:
    """The .obj file, its .mtl and its textures, the .obj file last; the same input gives the same bytes.

    Both sides of a seam share their point, so that the surface stays closed.

    Args:
        name: of the .obj file.
        asset: in metres, in the axes of `up`.
        texture_format: of the textures.
        up: which axis points up, noted in a comment.

    Returns:
        The content of each file under its name.
    """
    stem = side_stem(name)
    textures = encode_material(asset.material, texture_format)
    notes = "".join(f"# {line}\n" for line in note_lines(asset.metadata, up, "m"))
    library = notes + _material_lines(name, asset.material, textures)
    geometry = f"{notes}mtllib {stem}.mtl\no object\n{_geometry_lines(asset)}"
    sides = {side_name(name, texture.role, texture.suffix): texture.data for texture in textures}
    return {**sides, f"{stem}.mtl": library.encode("utf-8"), name: geometry.encode("utf-8")}


def _material_lines(name: str, material: Material, textures: list[TextureFile]) -> str:
    """The material of the .obj file `name`, for Phong readers and, as Pr, Pm and norm, for those of the PBR extension.

    The exponent is Blinn-Phong's of the same roughness, 2 / r^4 - 2 (Karis 2013). A normal map stands under norm alone:
    by the format map_Bump is a height map, and Blender, which takes a normal map from it, reads it as sRGB.
    """
    reflectance = DIELECTRIC * (1.0 - material.metallic) + 0.5 * material.metallic
    exponent = min(max(2.0 / max(material.roughness, 1e-3) ** 4 - 2.0, 0.0), 1000.0)
    lines = [
        f"newmtl {MATERIAL}",
        "Ka 0 0 0",
        "Kd 1 1 1",
        f"Ks {reflectance:.6g} {reflectance:.6g} {reflectance:.6g}",
        f"Ns {exponent:.6g}",
        "d 1",
        "illum 2",
        f"Pr {material.roughness:.6g}",
        f"Pm {material.metallic:.6g}",
    ]
    for texture in textures:
        key = "map_Kd" if texture.role == "base_color" else "norm"
        lines.append(f"{key} {side_name(name, texture.role, texture.suffix)}")
    return "\n".join(lines) + "\n"


def _geometry_lines(asset: Asset) -> str:
    mesh = asset.mesh
    first, point = join_seams(mesh)
    corners = np.stack([point[mesh.faces], mesh.faces, point[mesh.faces]], axis=2).reshape(-1, 9) + 1
    return "".join(
        [
            _rows("v %.9g %.9g %.9g\n", mesh.vertices[first].astype(np.float32)),
            _rows("vt %.9g %.9g\n", mesh.uv.astype(np.float32)),
            _rows("vn %.6g %.6g %.6g\n", mesh.normals[first]),
            f"usemtl {MATERIAL}\ns 1\n",
            _rows("f %d/%d/%d %d/%d/%d %d/%d/%d\n", corners),
        ]
    )


def _rows(pattern: str, values: np.ndarray) -> str:
    return "".join(pattern % tuple(row) for row in values.tolist())
