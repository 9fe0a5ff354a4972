"""Training images of the embedded prior: many small views of a coloured mesh, with its tintable part kept apart."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from nerf_bridge.ops.backend import library

N_CHANNELS = 8
MAX_SAMPLES_ACROSS = 8192


def render_views(
    vertices: NDArray[np.float32],
    faces: NDArray[np.int32],
    face_colors: NDArray[np.uint8],
    face_tintable: NDArray[np.uint8],
    c2w: NDArray[np.float32],
    fovy_rad: NDArray[np.float32],
    size: int = 64,
    supersample: int = 4,
    n_threads: int = 1,
) -> NDArray[np.uint8]:
    """Render square views of a mesh with flat colours, under the prior's fixed world light, by the C++ z-buffer.

    Both sides of a face are seen: colour = face colour * (0.55 + 0.45 (0.5 + 0.5 n . L)), L = normalize(0.3, -0.5, 0.8)
    in the world, n the face normal turned to the camera. With a background b in 0..255 and alpha = channel 7 / 255,
    the image is channels 0-2 + channels 3-5 + (1 - alpha) b, and with the tintable part in the colour t in 0..1 it is
    channels 0-2 + t * channel 6 + (1 - alpha) b.

    Args:
        vertices: [v, 3] world.
        faces: [f, 3] vertex indices, winding of no matter. Where two faces are equally near, the lower index is seen.
        face_colors: [f, 3] sRGB 0..255.
        face_tintable: [f], the number of the face's part among those that take another colour; 0 in none.
        c2w: [n, 4, 4] OpenGL cameras to world.
        fovy_rad: [n] full field of view.
        size: pixels across the square image.
        supersample: samples across one pixel; supersample^2 samples are averaged with equal weight.
        n_threads: views are split over this many threads; the result does not depend on it.
    Returns:
        [n, 8, size, size] 0..255, row 0 at the top, premultiplied by coverage: 0-2 shaded colour of the faces that are
        not tintable, 3-5 shaded colour of the tintable ones, 6 their shade times their luminance relative to that
        at the 70th percentile of their part's area, at most 1, 7 coverage of all faces.
    Raises:
        ValueError: wrong shapes, indices out of range, or a size, supersample or n_threads out of range.
        UserError: the C++ kernels cannot be loaded; says why and the remedy.
    """
    points = _array("vertices", vertices, np.float32, (-1, 3))
    triangles = _array("faces", faces, np.int32, (-1, 3))
    colors = _array("face_colors", face_colors, np.uint8, (len(triangles), 3))
    tintable = _array("face_tintable", face_tintable, np.uint8, (len(triangles),))
    cameras = _array("c2w", c2w, np.float32, (-1, 4, 4))
    fields = _array("fovy_rad", fovy_rad, np.float32, (len(cameras),))
    if len(triangles) and not (triangles.min() >= 0 and triangles.max() < len(points)):
        raise ValueError(f"faces: expected indices in 0..{len(points) - 1}, got {triangles.min()}..{triangles.max()}")
    if min(size, supersample, n_threads) < 1 or size * supersample > MAX_SAMPLES_ACROSS:
        raise ValueError(
            f"expected size, supersample and n_threads of at least 1 and size * supersample of at most "
            f"{MAX_SAMPLES_ACROSS}, got {size}, {supersample}, {n_threads}"
        )
    out = np.empty((len(cameras), N_CHANNELS, size, size), np.uint8)
    counts = [
        ctypes.c_int64(count) for count in (len(points), len(triangles), len(cameras), size, supersample, n_threads)
    ]
    library("cpu").render_views_f32(
        _pointer(points), counts[0], _pointer(triangles), counts[1], _pointer(colors), _pointer(tintable),
        _pointer(cameras), _pointer(fields), counts[2], counts[3], counts[4], _pointer(out), counts[5],
    )  # fmt: skip
    return out


def _array(name: str, values: NDArray, dtype: type, shape: tuple[int, ...]) -> NDArray:
    """`values` as a contiguous array of `dtype`, after a check of its shape (-1: any)."""
    array = np.asarray(values)
    fits = array.ndim == len(shape) and all(want in (-1, got) for want, got in zip(shape, array.shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if want < 0 else str(want) for want in shape)
        raise ValueError(f"{name}: expected shape [{wanted}], got {list(array.shape)}")
    return np.ascontiguousarray(array, dtype=dtype)


def _pointer(array: NDArray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
