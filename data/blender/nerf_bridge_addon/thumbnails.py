"""Small pictures of runs: the front view out of each preview.png, made one at a time so that Blender never waits."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from pathlib import Path

import bpy
import bpy.utils.previews

SIZE, ICON_SIZE = 128, 32


class Thumbnails:
    """Icons of picture files, kept until `close`."""

    def __init__(self) -> None:
        self._pictures = bpy.utils.previews.new()
        self._waiting: list[Path] = []

    def want(self, paths: Iterable[Path]) -> None:
        """Put the pictures that are there and have no icon yet at the head of the line."""
        wanted = [path for path in paths if path.is_file() and _key(path) not in self._pictures]
        self._waiting = list(dict.fromkeys([*wanted, *self._waiting]))

    def make_next(self) -> bool:
        """Make the next icon; whether there are more to make."""
        if self._waiting:
            path = self._waiting.pop(0)
            if path.is_file() and _key(path) not in self._pictures:
                self._make(path)
        return bool(self._waiting)

    def icon(self, path: Path) -> int:
        """The icon of a picture as the interface takes it; 0 when it is not made."""
        try:
            picture = self._pictures.get(_key(path))
        except OSError:  # no such picture, or not any more
            return 0
        return picture.icon_id if picture is not None else 0

    def close(self) -> None:
        """Free the icons."""
        bpy.utils.previews.remove(self._pictures)

    def _make(self, path: Path) -> None:
        picture = self._pictures.new(_key(path))
        pixels = front_view(path, SIZE)
        if pixels is None:
            return
        picture.image_size = (SIZE, SIZE)
        picture.image_pixels_float.foreach_set(pixels)
        picture.icon_size = (ICON_SIZE, ICON_SIZE)
        picture.icon_pixels_float.foreach_set(every(SIZE // ICON_SIZE, pixels, SIZE))


def front_view(path: Path, size: int) -> array | None:
    """The square at the left end of a picture as size * size RGBA values, bottom row first; None if it is damaged."""
    try:
        image = bpy.data.images.load(str(path))
    except RuntimeError:
        return None
    try:
        width, height = image.size
        if not image.has_data or width < height or not height:
            return None
        image.scale(max(size, round(width * size / height)), size)
        row = 4 * image.size[0]
        pixels = array("f", bytes(4 * row * size))
        image.pixels.foreach_get(pixels)
        square = array("f")
        for y in range(size):
            square.extend(pixels[y * row : y * row + 4 * size])
        return square
    finally:
        bpy.data.images.remove(image)


def every(step: int, pixels: array, size: int) -> array:
    """Every `step`-th pixel of every `step`-th row of a square picture."""
    chosen = array("f")
    for y in range(0, size, step):
        for x in range(0, size, step):
            start = 4 * (y * size + x)
            chosen.extend(pixels[start : start + 4])
    return chosen


def _key(path: Path) -> str:
    return f"{path} {path.stat().st_mtime_ns}"
