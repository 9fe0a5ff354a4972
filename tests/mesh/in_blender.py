"""Sends jobs to Blender, which runs in a process of its own, and measures its pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from nerf_bridge.scene.cameras import Cameras

SCRIPT = Path(__file__).with_name("import_in_blender.py")


def import_meshes(paths: Sequence[Path], views: Sequence[dict] = ()) -> list[dict]:
    """What Blender says of each of the meshes in one folder; see the script. It writes the pictures of `views`, too."""
    folder = paths[0].parent
    reports = [folder / f"{path.name}.report.json" for path in paths]
    jobs = [
        {"path": str(path), "report": str(report), "views": list(views)}
        for path, report in zip(paths, reports, strict=True)
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, str(SCRIPT), str(folder / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(report.read_text()) for report in reports]


def view_of(cameras: Cameras, index: int, origin: np.ndarray, scale: float, size: int, picture: Path) -> dict:
    """A camera of the field's box as one of Blender's world, where `origin` of the box is 0 and lengths are scaled."""
    c2w = cameras.c2w[index].double().numpy().copy()
    c2w[:3, 3] = (c2w[:3, 3] - origin) * scale
    return {"c2w": c2w.tolist(), "fovy": float(cameras.fovy_rad[index]), "size": size, "picture": str(picture)}


def before_white(picture: Path) -> np.ndarray:
    """[h, w, 3] in 0..1 of a PNG with transparency, before white."""
    pixels = np.asarray(Image.open(picture).convert("RGBA")) / 255
    return pixels[..., :3] * pixels[..., 3:] + 1 - pixels[..., 3:]


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of pictures [h, w, 3] in 0..1 (Wang et al. 2004): Gaussian window of 1.5 pixels."""

    def blurred(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x.astype(np.float64), (1.5, 1.5, 0), truncate=3.5)

    mean_a, mean_b = blurred(a), blurred(b)
    variance_a, variance_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    covariance = blurred(a * b) - mean_a * mean_b
    light = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
    return float((light * (2 * covariance + 9e-4) / (variance_a + variance_b + 9e-4)).mean())
