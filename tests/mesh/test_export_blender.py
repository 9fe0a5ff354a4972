"""What Blender makes of a GLB: upright, facing -y, the right size, not mirrored, textured."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from analytic_fields import all_occupied, clear_points, l_field, silhouettes_of

from nerf_bridge.config import MeshConfig
from nerf_bridge.mesh.export import export_mesh

HEIGHT_M = 0.45
SCALE = HEIGHT_M / 1.2  # the L is 1.2 units high

IN_BLENDER = """
import json, sys
import bpy
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.import_scene.gltf(filepath=sys.argv[1])
(shape,) = [thing for thing in bpy.data.objects if thing.type == "MESH"]
mesh = shape.data
(material,) = mesh.materials
(image,) = [node.image for node in material.node_tree.nodes if node.type == "TEX_IMAGE"]
width, height = image.size
pixels = list(image.pixels)
uv = mesh.uv_layers.active.data
samples, normals = [], []
for polygon in mesh.polygons:
    u, v = (sum(uv[loop].uv[k] for loop in polygon.loop_indices) / 3 for k in range(2))
    start = 4 * (int(v * height) * width + int(u * width))
    samples.append([*(shape.matrix_world @ polygon.center), *pixels[start:start + 3]])
    normals.append(list(shape.matrix_world.to_3x3() @ polygon.normal))
corners = [list(shape.matrix_world @ vertex.co) for vertex in mesh.vertices]
report = {"samples": samples, "normals": normals, "corners": corners, "uv": [list(loop.uv) for loop in uv]}
open(sys.argv[2], "w").write(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("blender")
    settings = MeshConfig(resolution=64, faces=3000, texture=512, height_m=HEIGHT_M)
    field = l_field()
    export_mesh(field, all_occupied(), silhouettes_of(field, 6, 48), settings, folder / "l.glb", {}, "torch", "cpu")
    target = folder / "report.json"
    command = [sys.executable, "-c", IN_BLENDER, str(folder / "l.glb"), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert target.is_file(), done.stderr
    return {name: np.array(values) for name, values in json.loads(target.read_text()).items()}


@pytest.mark.slow
@pytest.mark.blender
def test_blender_shows_it_upright_at_the_height_asked_for(report: dict[str, np.ndarray]) -> None:
    low, high = report["corners"].min(axis=0), report["corners"].max(axis=0)
    assert high[2] - low[2] == pytest.approx(HEIGHT_M, rel=0.01) and low[2] == pytest.approx(0, abs=1e-4)
    assert high - low == pytest.approx(np.array([1.2, 0.75, 1.2]) * SCALE, rel=0.03)


@pytest.mark.slow
@pytest.mark.blender
def test_blender_finds_each_colour_where_the_field_has_it(report: dict[str, np.ndarray]) -> None:
    """The nose tells front from back, the post left from right: neither mirrored, turned nor with a flipped texture."""
    assert report["uv"].min() >= 0 and report["uv"].max() <= 1
    world = torch.as_tensor(report["samples"][:, :3] / SCALE + [0.1, -0.075, -0.6]).float()
    field = l_field()
    clear = clear_points(field, world).numpy()
    error = np.abs(report["samples"][:, 3:] - field(world)[1].numpy()).max(axis=1)[clear]
    assert clear.sum() > 1000 and np.quantile(error, 0.98) < 0.03


@pytest.mark.slow
@pytest.mark.blender
def test_blender_sees_the_faces_from_outside(report: dict[str, np.ndarray]) -> None:
    centers = torch.as_tensor(report["samples"][:, :3] / SCALE + [0.1, -0.075, -0.6])
    outside = (centers + 0.05 * torch.as_tensor(report["normals"])).float()
    inside = (centers - 0.05 * torch.as_tensor(report["normals"])).float()
    field = l_field()
    assert float((field.density(outside) < field.density(inside)).float().mean()) > 0.99
