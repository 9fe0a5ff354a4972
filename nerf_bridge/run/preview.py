"""Pictures and films from rendered views."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from nerf_bridge.run.files import replacing

Image = NDArray[np.floating]


def to_bytes(image: Image) -> NDArray[np.uint8]:
    """Values in [0, 1] as bytes, rounded; values outside are clipped and values that are not numbers become 0."""
    return np.round(np.clip(np.nan_to_num(image, nan=0.0), 0.0, 1.0) * 255.0).astype(np.uint8)


def image_grid(images: Image, columns: int) -> Image:
    """Lay images out in rows, left to right and top to bottom; places left over are white.

    Args:
        images: [b, h, w, 3] in [0, 1], b at least 1.
        columns: images in a row, at least 1.

    Returns:
        [rows * h, columns * w, 3].
    """
    count, height, width, channels = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    grid = np.ones((rows * columns, height, width, channels), dtype=images.dtype)
    grid[:count] = images
    grid = grid.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)


def save_png(path: Path, image: Image) -> None:
    """Write `image` ([h, w, 3] in [0, 1]) as PNG, whole or not at all. Raises OSError when that fails."""
    with replacing(path) as aside:
        aside.write_bytes(iio.imwrite("<bytes>", to_bytes(image), extension=".png"))


def save_turntable(path: Path, frames: Iterable[Image], fps: int = 24) -> None:
    """Write a film as H.264 in yuv420p, which every browser plays; odd sizes grow by one row or column.

    Args:
        path: the MP4 file.
        frames: images [h, w, 3] in [0, 1], all of one size, at least one.
        fps: frames a second.

    Raises:
        OSError: writing failed (a full disk, for example); `path` is as it was.
    """
    images = (_even(to_bytes(frame)) for frame in frames)
    with replacing(path) as aside:
        written = _encode(aside, images, fps)
        kept = imageio_ffmpeg.count_frames_and_secs(str(aside))[0] if aside.exists() else 0
        if kept != written:  # ffmpeg ends quietly when the disk fills
            raise OSError(f"cannot write {path}: {kept} of {written} frames were written; is the disk full?")


def _encode(path: Path, images: Iterator[NDArray[np.uint8]], fps: int) -> int:
    first = next(images)
    height, width = first.shape[:2]
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=fps,
        codec="libx264",
        pix_fmt_out="yuv420p",
        macro_block_size=2,
        quality=None,
        output_params=["-crf", "20", "-movflags", "+faststart"],
    )
    writer.send(None)
    count = 0
    try:
        for image in (first, *images):
            writer.send(np.ascontiguousarray(image))
            count += 1
    finally:
        writer.close()
    return count


def _even(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat the last row and column where needed: yuv420p halves both sides."""
    return np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge")
