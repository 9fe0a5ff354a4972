"""Textures as PNG, JPEG or WebP."""

from __future__ import annotations

import io
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from nerf_bridge.mesh.data import Material

TextureFormat = Literal["png", "jpeg", "webp"]

JPEG_QUALITY, JPEG_NORMAL_QUALITY = 92, 96
WEBP_QUALITY = 90
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


@dataclass(frozen=True)
class TextureFile:
    """One encoded picture.

    Attributes:
        role: "base_color" or "normal"; side files get their names from it.
        data: the file's content.
        suffix: ".png", ".jpg" or ".webp".
        mime: as glTF calls the format.
    """

    role: str
    data: bytes
    suffix: str
    mime: str


def encode_material(material: Material, texture_format: TextureFormat) -> list[TextureFile]:
    """The base colour and, where there is one, the normal map.

    JPEG keeps the colours' full resolution, WebP halves it. WebP keeps normals without loss, since what is lost in them
    shows as facets in the light; JPEG cannot, and gets a higher quality for them.
    """
    color_options: dict[str, dict[str, Any]] = {
        "png": {},
        "jpeg": {"quality": JPEG_QUALITY, "subsampling": 0},
        "webp": {"quality": WEBP_QUALITY},
    }
    normal_options: dict[str, dict[str, Any]] = {
        "png": {},
        "jpeg": {"quality": JPEG_NORMAL_QUALITY, "subsampling": 0},
        "webp": {"lossless": True},
    }
    with ThreadPoolExecutor(1) as beside:
        color = beside.submit(_encode, "base_color", material.base_color, texture_format, color_options[texture_format])
        if material.normal is None:
            return [color.result()]
        normal = _encode("normal", material.normal, texture_format, normal_options[texture_format])
        return [color.result(), normal]


def side_stem(name: str) -> str:
    """What the files beside the one called `name` start with: its stem, with "_" for what a reader may stumble over.

    White space ends a name in OBJ, and not every reader of glTF decodes an escaped URI. A stem with such characters
    gets its checksum, so that "a b" and "a_b" have files of their own.
    """
    stem = Path(name).stem
    safe = re.sub(r"[^\w.-]+", "_", stem)
    return safe if safe == stem else f"{safe}-{zlib.crc32(stem.encode('utf-8', 'surrogateescape')):08x}"


def side_name(name: str, role: str, suffix: str) -> str:
    """The name of the texture `role` beside the file called `name`, whose format it tells: `NAME_obj_normal.png`."""
    return f"{side_stem(name)}_{Path(name).suffix[1:].lower()}_{role}{suffix}"


def _encode(role: str, pixels: np.ndarray, texture_format: TextureFormat, options: dict[str, Any]) -> TextureFile:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=texture_format.upper(), **options)
    return TextureFile(role, stream.getvalue(), SUFFIXES[texture_format], f"image/{texture_format}")
