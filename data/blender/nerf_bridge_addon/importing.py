"""Brings one GLB into the scene: placed on the ground, named after its prompt, its material set up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bpy
from mathutils import Vector

from .errors import AddonError
from .glb import read_metadata

KEPT = ("prompt", "seed", "prior", "licence")
"""What the object says of its own making, as custom properties."""
BLOCKS = ("objects", "meshes", "materials", "images", "armatures", "cameras", "lights", "actions", "node_groups",
          "collections")  # fmt: skip
"""The kinds of data-blocks that the glTF importer adds, by their names in `bpy.data`."""


def import_asset(path: Path, place: Vector) -> bpy.types.Object:
    """Import the asset `path`; it becomes the active and only selected object.

    Args:
        path: a GLB with one mesh.
        place: where the object's pivot comes to lie in x and y, and its lowest point in z; metres.

    Raises:
        AddonError: the file cannot be read or holds something else; the scene is as it was.
    """
    metadata = read_metadata(path)
    before = set(bpy.data.objects)
    with _taken_back_when_refused():
        _run_importer(path)
        shape = _only_mesh([thing for thing in bpy.data.objects if thing not in before], path)
        surface = _surface_of(shape.data.materials[0], path)
    name = str(metadata.get("prompt") or path.parent.name or path.stem)
    _name(shape, name, metadata)
    _name_material(shape.data.materials[0], surface, name)
    _put(shape, place)
    _select([shape], shape)
    return shape


@contextmanager
def _taken_back_when_refused() -> Iterator[None]:
    """When the block ends with an AddonError, remove the data-blocks that it added and select what was selected."""
    before, selected, active = _blocks(), bpy.context.selected_objects, bpy.context.view_layer.objects.active
    try:
        yield
    except AddonError:
        bpy.data.batch_remove(_blocks() - before)
        _select(selected, active)
        raise


def _blocks() -> set[bpy.types.ID]:
    return {block for kind in BLOCKS for block in getattr(bpy.data, kind)}


def _run_importer(path: Path) -> None:
    try:
        bpy.ops.import_scene.gltf(filepath=str(path))
    except AttributeError:
        raise AddonError("Blender's add-on 'glTF 2.0 format' is off: switch it on in the preferences") from None
    except RuntimeError as error:
        reason = " ".join(str(error).removeprefix("Error: ").split())
        raise AddonError(f"Blender cannot read {path}: {reason}") from None


def _only_mesh(things: list[bpy.types.Object], path: Path) -> bpy.types.Object:
    shapes = [thing for thing in things if thing.type == "MESH"]
    if len(things) == len(shapes) == 1 and len(shapes[0].data.materials) == 1:
        return shapes[0]
    raise AddonError(f"{path} is not an asset of nerf_bridge: expected one mesh with one material")


def _surface_of(material: bpy.types.Material, path: Path) -> bpy.types.ShaderNode:
    """The node that holds the material's values."""
    surface = next((node for node in material.node_tree.nodes if node.type == "BSDF_PRINCIPLED"), None)
    if surface is None:
        raise AddonError(f"{path} is not an asset of nerf_bridge: expected a material that takes light")
    return surface


def _name(shape: bpy.types.Object, name: str, metadata: Mapping[str, Any]) -> None:
    shape.name = shape.data.name = name
    for key in KEPT:
        if metadata.get(key) is not None:
            value = metadata[key]
            shape[key] = value if isinstance(value, int | float | str) else str(value)


def _name_material(material: bpy.types.Material, surface: bpy.types.ShaderNode, name: str) -> None:
    """Name material and images; base colour is a colour (sRGB), every other image is plain numbers (Non-Color)."""
    material.name = name
    roles = {"Base Color": "base colour", "Normal": "normal", "Roughness": "roughness", "Metallic": "metallic"}
    for socket, role in roles.items():
        image = _image_behind(surface.inputs[socket])
        if image is not None:
            image.name = f"{name} {role}"
            image.colorspace_settings.name = "sRGB" if socket == "Base Color" else "Non-Color"


def _image_behind(socket: bpy.types.NodeSocket) -> bpy.types.Image | None:
    """The image that feeds `socket`, at once or through other nodes such as Normal Map; None without one."""
    for link in socket.links:
        node = link.from_node
        if node.type == "TEX_IMAGE":
            return node.image
        for entry in node.inputs:
            image = _image_behind(entry)
            if image is not None:
                return image
    return None


def _put(shape: bpy.types.Object, place: Vector) -> None:
    shape.location = place
    bpy.context.view_layer.update()
    shape.location.z += place.z - min((shape.matrix_world @ vertex.co).z for vertex in shape.data.vertices)
    bpy.context.view_layer.update()


def _select(things: list[bpy.types.Object], active: bpy.types.Object | None) -> None:
    for thing in bpy.context.selected_objects:
        thing.select_set(False)
    for thing in things:
        thing.select_set(True)
    bpy.context.view_layer.objects.active = active
