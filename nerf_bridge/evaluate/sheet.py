"""Picture sheets: rows of small pictures with their words below."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nerf_bridge.errors import RunError
from nerf_bridge.run.files import write_bytes
from nerf_bridge.run.preview import to_bytes

PAPER, INK, BAD_INK = (240, 240, 240), (40, 46, 56), (176, 32, 32)


@dataclass(frozen=True)
class Strip:
    """Pictures side by side, [n, 3, h, w] in 0..1, with the words below them; `bad` words are red."""

    pictures: Tensor
    words: str
    bad: bool = False


def draw_sheet(strips: Sequence[Strip], columns: int, size: int, heading: str = "") -> Image.Image:
    """All strips, `columns` of them side by side, each picture `size` pixels wide; a heading line above."""
    per_strip = max(len(strip.pictures) for strip in strips)
    tall = max(round(size * strip.pictures.shape[2] / strip.pictures.shape[3]) for strip in strips)
    font = ImageFont.load_default(size=max(11, size // 6))
    margin, caption = max(6, size // 10), max(16, size // 4)
    width, height = per_strip * size + margin, tall + caption
    top_line = caption if heading else 0
    rows = math.ceil(len(strips) / columns)
    sheet = Image.new("RGB", (columns * width, rows * height + top_line), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, 2), heading, font=font, fill=INK)
    for i, strip in enumerate(strips):
        left, top = i % columns * width, i // columns * height + top_line
        for k, picture in enumerate(strip.pictures.permute(0, 2, 3, 1).cpu().numpy()):
            sheet.paste(_sized(picture, size), (left + k * size, top))
        draw.text((left + 2, top + tall + 1), strip.words, font=font, fill=BAD_INK if strip.bad else INK)
    return sheet


def _sized(picture: np.ndarray, width: int) -> Image.Image:
    image = Image.fromarray(to_bytes(picture))
    height = round(width * image.height / image.width)
    return image if image.width == width else image.resize((width, height), Image.Resampling.LANCZOS)


def save_sheet(path: Path, sheet: Image.Image) -> None:
    """Write `sheet` as PNG, whole or not at all. Raises RunError when that fails."""
    stream = io.BytesIO()
    sheet.save(stream, "PNG", optimize=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, stream.getvalue())
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None
