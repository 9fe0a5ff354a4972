"""Runs in Blender: `python import_in_blender.py JOBS.json`, a list of what to import, to measure and to render.

A job: `path` of the mesh; `report`, the JSON file to write; `views`, each {"c2w": 4 x 4 in Blender's world, "fovy",
"size", "picture": PNG to write}. Pictures show the texture without light, before nothing (alpha).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bpy
from mathutils import Matrix

IMPORTERS = {
    ".glb": lambda path: bpy.ops.import_scene.gltf(filepath=path),
    ".gltf": lambda path: bpy.ops.import_scene.gltf(filepath=path),
    ".obj": lambda path: bpy.ops.wm.obj_import(filepath=path),
    ".ply": lambda path: bpy.ops.wm.ply_import(filepath=path),
    ".stl": lambda path: bpy.ops.wm.stl_import(filepath=path),
    ".usdz": lambda path: bpy.ops.wm.usd_import(filepath=path),
}


def main(job: dict) -> None:
    """Import, render what is asked for, and report."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    IMPORTERS[Path(job["path"]).suffix](job["path"])
    (shape,) = [thing for thing in bpy.data.objects if thing.type == "MESH"]
    materials = [describe_material(material) for material in shape.data.materials if material is not None]
    report = {"materials": materials, **describe_mesh(shape), "samples": sample_faces(shape)}
    Path(job["report"]).write_text(json.dumps(report))
    for view in job["views"]:
        render(shape, view)


def describe_mesh(shape: bpy.types.Object) -> dict:
    """Corners, face normals, texture coordinates and vertex colours, all in Blender's world."""
    mesh, turn = shape.data, shape.matrix_world.to_3x3()
    uv = mesh.uv_layers.active
    colors = mesh.color_attributes.active_color if len(mesh.color_attributes) else None
    return {
        "corners": [list(shape.matrix_world @ vertex.co) for vertex in mesh.vertices],
        "faces": [list(polygon.vertices) for polygon in mesh.polygons],
        "normals": [list(turn @ polygon.normal) for polygon in mesh.polygons],
        "vertex_normals": [list(turn @ corner.vector) for corner in mesh.corner_normals],
        "uv": [list(corner.uv) for corner in uv.data] if uv else [],
        "colors": [list(color.color_srgb[:3]) for color in colors.data] if colors else [],
    }


def describe_material(material: bpy.types.Material) -> dict:
    """Factors and pictures of a material, and what each picture feeds."""
    nodes = material.node_tree.nodes
    (surface,) = [node for node in nodes if node.type == "BSDF_PRINCIPLED"]
    pictures = {}
    for name in ("Base Color", "Normal"):
        for link in surface.inputs[name].links:
            source = link.from_node
            if source.type == "NORMAL_MAP":
                source = source.inputs["Color"].links[0].from_node
            pictures[name] = [source.image.colorspace_settings.name, *source.image.size]
    return {
        "pictures": pictures,
        "roughness": surface.inputs["Roughness"].default_value,
        "metallic": surface.inputs["Metallic"].default_value,
    }


def sample_faces(shape: bpy.types.Object) -> list[list[float]]:
    """(x, y, z, r, g, b): the middle of each face, and the base colour's texel there."""
    mesh = shape.data
    if not mesh.uv_layers.active or not mesh.materials:
        return []
    (surface,) = [node for node in mesh.materials[0].node_tree.nodes if node.type == "BSDF_PRINCIPLED"]
    image = surface.inputs["Base Color"].links[0].from_node.image
    width, height = image.size
    pixels = list(image.pixels)
    uv = mesh.uv_layers.active.data
    samples = []
    for polygon in mesh.polygons:
        u, v = (sum(uv[loop].uv[k] for loop in polygon.loop_indices) / 3 for k in range(2))
        start = 4 * (int(v * height) * width + int(u * width))  # row 0 is at v = 0 in Blender
        samples.append([*(shape.matrix_world @ polygon.center), *pixels[start : start + 3]])
    return samples


def render(shape: bpy.types.Object, view: dict) -> None:
    """A Cycles picture of the base colour, without light."""
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.cycles.samples, scene.cycles.max_bounces, scene.cycles.use_denoising = 16, 0, False
    scene.render.resolution_x = scene.render.resolution_y = view["size"]
    scene.render.film_transparent = True
    scene.view_settings.view_transform = "Standard"
    scene.render.image_settings.file_format, scene.render.image_settings.color_mode = "PNG", "RGBA"
    glow(shape.data.materials[0])
    data = bpy.data.cameras.new("camera")
    data.sensor_fit, data.angle = "VERTICAL", view["fovy"]
    data.clip_start = 0.001
    camera = bpy.data.objects.new("camera", data)
    camera.matrix_world = Matrix(view["c2w"])
    scene.collection.objects.link(camera)
    scene.camera = camera
    scene.render.filepath = view["picture"]
    bpy.ops.render.render(write_still=True)


def glow(material: bpy.types.Material) -> None:
    """Send out the base colour's texture as light, and reflect none."""
    nodes, links = material.node_tree.nodes, material.node_tree.links
    (surface,) = [node for node in nodes if node.type == "BSDF_PRINCIPLED"]
    (output,) = [node for node in nodes if node.type == "OUTPUT_MATERIAL"]
    emission = nodes.new("ShaderNodeEmission")
    links.new(surface.inputs["Base Color"].links[0].from_socket, emission.inputs["Color"])
    links.new(emission.outputs["Emission"], output.inputs["Surface"])


if __name__ == "__main__":
    for given in json.loads(Path(sys.argv[1]).read_text()):
        main(given)
