"""The surface as a binary PLY with a colour at each vertex."""

from __future__ import annotations

import numpy as np

from nerf_bridge.mesh.data import Asset
from nerf_bridge.mesh.notes import note_lines
from nerf_bridge.mesh.placement import Up
from nerf_bridge.mesh.seams import join_seams

COORDINATES, CHANNELS = ("x", "y", "z", "nx", "ny", "nz"), ("red", "green", "blue")
VERTEX = np.dtype([(name, "<f4") for name in COORDINATES] + [(name, "u1") for name in CHANNELS])
FACE = np.dtype([("n", "u1"), ("corners", "<i4", 3)])


def ply_file(name: str, asset: Asset, up: Up) -> dict[str, bytes]:
    """The file's content under its name; the same input gives the same bytes.

    Seams are welded. The colours are those of the texture, sRGB, the mean over the sides of a seam.

    Args:
        name: of the file.
        asset: in metres, in the axes of `up`.
        up: which axis points up, noted in a comment.
    """
    mesh = asset.mesh
    first, point = join_seams(mesh)
    colors = _mean_by_point(sample_texture(asset.material.base_color, mesh.uv), point, len(first))
    vertices = np.empty(len(first), dtype=VERTEX)
    columns = [*mesh.vertices[first].T, *mesh.normals[first].T, *np.round(colors).clip(0, 255).astype(np.uint8).T]
    for field, column in zip(COORDINATES + CHANNELS, columns, strict=True):
        vertices[field] = column
    faces = np.empty(len(mesh.faces), dtype=FACE)
    faces["n"], faces["corners"] = 3, point[mesh.faces]
    header = [
        "ply",
        "format binary_little_endian 1.0",
        *(f"comment {line}" for line in note_lines(asset.metadata, up, "m")),
        f"element vertex {len(vertices)}",
        *(f"property float {name}" for name in COORDINATES),
        *(f"property uchar {name}" for name in CHANNELS),
        f"element face {len(faces)}",
        "property list uchar int vertex_indices",
        "end_header",
    ]
    return {name: "\n".join(header).encode("ascii") + b"\n" + vertices.tobytes() + faces.tobytes()}


def sample_texture(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """[n, 3] values of `texture` [h, w, 3] at `uv` [n, 2] (row 0 at v = 1), bilinear between texel centres."""
    from scipy.ndimage import map_coordinates  # only this format needs it

    height, width = texture.shape[:2]
    at = np.stack([(1.0 - uv[:, 1]) * height - 0.5, uv[:, 0] * width - 0.5])
    channels = (texture[..., channel].astype(np.float64) for channel in range(3))
    return np.stack([map_coordinates(values, at, order=1, mode="nearest") for values in channels], axis=1)


def _mean_by_point(values: np.ndarray, point: np.ndarray, n_points: int) -> np.ndarray:
    """[n_points, 3] means of the `values` [v, 3] that share a `point` [v]."""
    counts = np.bincount(point, minlength=n_points)
    sums = [np.bincount(point, values[:, axis], n_points) for axis in range(3)]
    return np.stack(sums, axis=1) / counts[:, None]
