"""Textures as files."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from nerf_bridge.mesh.data import Material
from nerf_bridge.mesh.texture_files import TextureFormat, encode_material, side_name, side_stem

RAMP = np.stack([*np.meshgrid(np.arange(64) * 4, np.arange(64) * 4), np.full((64, 64), 90)], axis=2).astype(np.uint8)
EDGE = np.zeros((64, 64, 3), dtype=np.uint8)
EDGE[:, 20:] = (200, 30, 60)


def decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize(
    ("texture_format", "suffix", "color_error", "normal_error"),
    [("png", ".png", 0, 0), ("jpeg", ".jpg", 12, 6), ("webp", ".webp", 40, 0)],
)
def test_formats_and_what_they_lose(
    texture_format: TextureFormat, suffix: str, color_error: int, normal_error: int
) -> None:
    color, normal = encode_material(Material(EDGE, RAMP, 0.9, 0.0), texture_format)
    for texture, source, bound in ((color, EDGE, color_error), (normal, RAMP, normal_error)):
        image = decoded(texture.data)
        assert (image.format or "").lower() == texture_format and image.size == (64, 64) and image.mode == "RGB"
        assert np.abs(np.asarray(image).astype(int) - source).max() <= bound
        assert texture.mime == f"image/{texture_format}" and texture.suffix == suffix
    names = [side_name("a.obj", texture.role, texture.suffix) for texture in (color, normal)]
    assert names == [f"a_obj_base_color{suffix}", f"a_obj_normal{suffix}"]


def test_names_that_differ_in_format_or_in_a_space_have_side_files_of_their_own() -> None:
    names = ("a b.obj", "a_b.obj", "a  b.obj", "a_b.gltf")
    assert len({side_name(name, "normal", ".png") for name in names}) == len(names)
    assert side_stem("a_b.obj") == "a_b" and side_stem("a b.obj").startswith("a_b-")
    assert all(" " not in side_stem(name) for name in names)


def test_without_a_normal_map_there_is_one_file() -> None:
    (color,) = encode_material(Material(RAMP, None, 0.9, 0.0), "png")
    assert color.role == "base_color" and np.array_equal(np.asarray(decoded(color.data)), RAMP)


def test_the_lossy_formats_are_smaller() -> None:
    noise = np.random.default_rng(0).integers(100, 140, (256, 256, 3)).astype(np.uint8)
    sizes = [len(encode_material(Material(noise, None, 0.9, 0.0), kind)[0].data) for kind in ("png", "jpeg", "webp")]
    assert sizes[2] < sizes[1] < sizes[0] / 2
