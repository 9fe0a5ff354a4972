"""Runs xatlas in a process of its own: `python xatlas_worker.py INPUT.npz OUTPUT.npz SECONDS`.

INPUT holds `vertices` [v, 3], `faces` [f, 3], `size` and `padding` in texels. OUTPUT gets `source` [w] (the input
vertex of each output vertex), `faces` [f, 3] and `uv` [w, 2] in 0..1. Imports nothing of the package, to start fast.
"""

from __future__ import annotations

import signal
import sys

import numpy as np
import xatlas


def main(source: str, target: str, seconds: int) -> None:
    """Unwrap the mesh in `source` into `target`; the process ends by itself soon after `seconds` if nobody ends it."""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds + 5)
    given = np.load(source)
    packing = xatlas.PackOptions()
    packing.resolution = int(given["size"])
    packing.padding = int(given["padding"])
    packing.bilinear = True
    packing.rotate_charts_to_axis = True
    packing.rotate_charts = False  # "rotates" by swapping u and v, which mirrors the chart
    charts = xatlas.ChartOptions()
    charts.fix_winding = True  # no mirrored charts: normal maps need them to wind alike
    atlas = xatlas.Atlas()
    atlas.add_mesh(given["vertices"].astype(np.float32), given["faces"].astype(np.uint32))
    atlas.generate(charts, packing)
    vertex, faces, uv = atlas[0]
    np.savez(target, source=vertex, faces=faces, uv=uv)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
