"""Runs xatlas in a process of its own: `python xatlas_worker.py INPUT.npz OUTPUT.npz SECONDS GIB`.

INPUT holds `vertices` [v, 3], `faces` [f, 3], `size` and `padding` in texels. OUTPUT gets `source` [w] (the input
vertex of each output vertex), `faces` [f, 3] and `uv` [w, 2] in 0..1. Imports nothing of the package, to start fast.
"""

from __future__ import annotations

import signal
import sys

import numpy as np
import xatlas

OVERSHOOT = 1.25
"""xatlas guesses the scale, and its atlas comes out larger than asked for by about so much."""
FACES_OF_CHART = 700
"""The area of the largest chart, in mean faces. Without a limit a few large charts take most of the time, which grows
faster than their size: 4.1 s in place of 1.3 s for 20,000 faces, and the texture is filled no better (50 to 55 %)."""


def main(source: str, target: str, seconds: int, memory_gb: float) -> None:
    """Unwrap the mesh in `source` into `target`, within `memory_gb` GiB.

    The process ends by itself soon after `seconds` if nobody ends it.
    """
    if hasattr(signal, "alarm"):
        signal.alarm(seconds + 5)
    limit_memory(memory_gb)
    given = np.load(source)
    vertices, faces = given["vertices"], given["faces"]
    packing = xatlas.PackOptions()
    packing.resolution = round(int(given["size"]) / OVERSHOOT)
    packing.padding = int(given["padding"])
    packing.bilinear = True
    packing.bruteForce = True
    packing.blockAlign = True
    packing.rotate_charts_to_axis = True
    packing.rotate_charts = False  # "rotates" by swapping u and v, which mirrors the chart
    charts = xatlas.ChartOptions()
    charts.max_chart_area = FACES_OF_CHART / len(faces) * area(vertices, faces)
    charts.fix_winding = True  # no mirrored charts: normal maps need them to wind alike
    atlas = xatlas.Atlas()
    atlas.add_mesh(vertices.astype(np.float32), faces.astype(np.uint32))
    atlas.generate(charts, packing)
    vertex, faces, uv = atlas[0]
    np.savez(target, source=vertex, faces=faces, uv=uv)


def limit_memory(memory_gb: float) -> None:
    """Let this process have no more than `memory_gb` GiB of data; systems without such limits go without."""
    try:
        import resource
    except ImportError:  # Windows
        return
    most = int(memory_gb * 2**30)
    allowed = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(
        resource.RLIMIT_DATA, (most if allowed == resource.RLIM_INFINITY else min(most, allowed), allowed)
    )


def area(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Of the surface."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    return 0.5 * float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
