"""A run directory with made-up results, for the tests of what shows them."""

import math
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image

from nerf_bridge.config import GenerateConfig, build_config
from nerf_bridge.run.directory import RunDirectory
from nerf_bridge.run.events import EventLog
from nerf_bridge.run.preview import image_grid, save_png, save_turntable

PROMPT = 'a "red" <torus> & </script> more'
SUMMARY = {
    "state": "done",
    "device": "cpu",
    "backend": "cpu",
    "seconds": {"load": 1.5, "optimise": 90.25, "mesh": 12.0, "report": 3.5},
    "versions": {"nerf_bridge": "0.1.0", "torch": "2.11"},
    "prior": {"name": "embedded", "licence": "Apache-2.0", "source": "ours", "sha256": {"unet.safetensors": "ab" * 32}},
    "mesh": {
        "faces": 20480,
        "vertices": 10400,
        "watertight": True,
        "threshold": 12.5,
        "bounds_m": ((-0.5, 0.0, -0.5), (0.5, 0.4, 0.5)),
        "curve": ((5.0, 0.8), (12.5, 0.95), (30.0, 0.9)),
    },
}


def textured_torus(texture_size: int = 256) -> bytes:
    """A red torus, y up, as GLB with an image texture."""
    torus = trimesh.creation.torus(major_radius=0.4, minor_radius=0.15, major_sections=64, minor_sections=32)
    turn = trimesh.transformations.rotation_matrix(-math.pi / 2, (1, 0, 0))
    torus.apply_transform(turn)
    pixels = np.random.default_rng(0).integers(0, 60, (texture_size, texture_size, 3), dtype=np.uint8)
    pixels[..., 0] += 180
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=Image.fromarray(pixels), metallicFactor=0.0, roughnessFactor=0.8
    )
    uv = torus.vertices[:, :2] + 0.5
    torus.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return torus.export(file_type="glb")


def views(count: int, size: int, phase: float) -> np.ndarray:
    """Pictures [count, size, size, 3] of a disc that grows with `phase` and turns dark on one side."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    images = np.ones((count, size, size, 3), dtype=np.float32)
    for i in range(count):
        disc = np.hypot(x, y) < 0.3 + 0.4 * phase
        images[i][disc] = np.array([0.8, 0.2, 0.2]) * (0.7 + 0.3 * np.sin(x[disc] * 3 + i))[:, None]
    return images


def make_sample_run(path: Path) -> tuple[RunDirectory, GenerateConfig]:
    """Everything of a finished run but its record and its report."""
    run = RunDirectory(path)
    run.previews.mkdir(parents=True)
    run.asset.write_bytes(textured_torus())
    save_png(run.preview, views(1, 96, 1.0)[0])
    save_turntable(run.turntable, views(24, 96, 1.0), fps=12)
    with EventLog(run.events) as log:
        log.append("start", "optimise", 0, 300)
        for step in range(10, 301, 10):
            figures = {"opacity": 0.1 + 0.2 * math.exp(-step / 60), "gradient_norm": 10 ** (1 - step / 100)}
            log.append("progress", "optimise", step, 300, {**figures, "occupied": 0.3, "finite": True})
            if step % 50 == 0:
                save_png(run.preview_at(step), image_grid(views(4, 96, step / 300), 4))
        log.append("done", "report", 300, 300)
    return run, build_config({"prompt": PROMPT, "seed": 3, "optim": {"lr_grid": 0.5}})
