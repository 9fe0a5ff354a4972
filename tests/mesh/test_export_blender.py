"""What Blender makes of our files: upright, facing -y, the right size, not mirrored, textured, like our own renders."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from analytic_fields import all_occupied, clear_points, silhouettes_of
from cuboid import SIDES, cuboid_asset
from in_blender import before_white, import_meshes, ssim, view_of
from proof_scene import HIGH, LOW, METADATA, proof_field, render_field

from nerf_bridge import export_mesh
from nerf_bridge.config import MeshConfig
from nerf_bridge.mesh.write import write_asset
from nerf_bridge.scene.cameras import turntable_cameras

pytestmark = [pytest.mark.blender, pytest.mark.slow]
HEIGHT_M = 0.45
FIELD = proof_field()
SIZE, VIEWS = 128, 4


@dataclass(frozen=True)
class Imported:
    """The proof scene in Blender: its arrays and material, how the box lies there, and pictures of both."""

    report: dict
    origin: np.ndarray
    scale: float
    pictures: list[np.ndarray]
    truth: np.ndarray

    def array(self, name: str) -> np.ndarray:
        return np.array(self.report[name])

    def in_box(self, points: np.ndarray) -> torch.Tensor:
        """Points [n, 3] of Blender's world in the field's box."""
        return torch.as_tensor(points / self.scale + self.origin).float()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    folder = tmp_path_factory.mktemp("blender")
    settings = MeshConfig(resolution=96, faces=8000, texture=512, height_m=HEIGHT_M, roughness=0.7, metallic=0.2)
    path, seen = folder / "proof.glb", silhouettes_of(FIELD, 6, 64)
    statistics = export_mesh(FIELD, all_occupied(), seen, settings, path, METADATA, "torch", "cpu")
    low, high = np.array(statistics.bounds)
    origin, scale = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]]), HEIGHT_M / (high[2] - low[2])
    cameras = turntable_cameras(VIEWS, math.radians(25.0), 3.0, math.radians(40.0))
    pictures = [folder / f"view{index}.png" for index in range(VIEWS)]
    views = [view_of(cameras, index, origin, scale, SIZE, picture) for index, picture in enumerate(pictures)]
    (report,) = import_meshes([path], views)
    return Imported(report, origin, scale, [before_white(p) for p in pictures], render_field(FIELD, cameras, SIZE))


def test_it_stands_upright_at_the_height_asked_for(scene: Imported) -> None:
    corners = scene.array("corners")
    low, high = corners.min(axis=0), corners.max(axis=0)
    assert high[2] - low[2] == pytest.approx(HEIGHT_M, rel=0.01) and low[2] == pytest.approx(0, abs=1e-5)
    assert (low + high)[:2] == pytest.approx([0, 0], abs=1e-5)
    assert high - low == pytest.approx((HIGH - LOW) * HEIGHT_M / (HIGH - LOW)[2], rel=0.02)


def test_red_is_left_blue_in_front_and_the_marker_on_top(scene: Imported) -> None:
    samples = scene.array("samples")
    red, green, blue = samples[:, 3:].T
    middle = samples[:, :3] / HEIGHT_M
    assert middle[(red > 0.8) & (green < 0.3), 0].max() < -0.3
    assert middle[(blue > 0.8) & (red < 0.3), 1].max() < -0.2
    assert middle[(red > 0.8) & (green > 0.6), 2].min() > 0.8


def test_each_texel_lies_where_the_field_has_its_colour(scene: Imported) -> None:
    """Neither mirrored, nor turned, nor with a flipped texture."""
    uv = scene.array("uv")
    assert uv.min() >= 0 and uv.max() <= 1
    samples = scene.array("samples")
    points = scene.in_box(samples[:, :3])
    clear = clear_points(FIELD, points, 0.03).numpy()
    error = np.abs(samples[:, 3:] - FIELD(points)[1].numpy()).max(axis=1)[clear]
    assert clear.sum() > 4000 and np.quantile(error, 0.98) < 0.03
    for turned in (points * torch.tensor([-1.0, 1, 1]), points * torch.tensor([1.0, -1, 1])):
        assert (np.abs(samples[:, 3:] - FIELD(turned)[1].numpy()).max(axis=1) > 0.5).mean() > 0.1


def test_faces_and_normals_point_outward(scene: Imported) -> None:
    centers, normals = scene.array("samples")[:, :3], scene.array("normals")
    outside, inside = (scene.in_box(centers + side * 0.05 * scene.scale * normals) for side in (1, -1))
    assert float((FIELD.density(outside) < FIELD.density(inside)).float().mean()) > 0.995
    corner_normals = scene.array("vertex_normals").reshape(-1, 3, 3)
    assert (np.einsum("fkd,fd->fk", corner_normals, normals) > 0).mean() > 0.98


def test_there_is_one_material_with_pictures(scene: Imported) -> None:
    (material,) = scene.report["materials"]
    assert material["roughness"] == pytest.approx(0.7) and material["metallic"] == pytest.approx(0.2)
    assert material["pictures"] == {"Base Color": ["sRGB", 512, 512], "Normal": ["Non-Color", 512, 512]}


def test_blender_s_pictures_match_our_own_of_the_field(scene: Imported) -> None:
    for index, picture in enumerate(scene.pictures):
        assert ssim(picture, scene.truth[index]) > 0.95
        assert ssim(picture[:, ::-1], scene.truth[index]) < 0.9
        assert np.abs(picture - scene.truth[index]).mean() < 0.02


FORMATS = ("glb", "gltf", "obj", "ply", "stl", "usdz")


@pytest.fixture(scope="module")
def cuboids(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The cuboid in each format, with Blender's report of it."""
    folder = tmp_path_factory.mktemp("cuboids")
    paths = [folder / f"cuboid.{suffix}" for suffix in FORMATS]
    for path in paths:
        write_asset(path, cuboid_asset(), MeshConfig(height_m=0.4))
    return dict(zip(FORMATS, import_meshes(paths), strict=True))


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_stands_and_faces_alike(cuboids: dict[str, dict], suffix: str) -> None:
    report = cuboids[suffix]
    corners, faces, normals = (np.array(report[name]) for name in ("corners", "faces", "normals"))
    assert corners.min(axis=0) == pytest.approx([-0.3, -0.1, 0], abs=1e-6)
    assert corners.max(axis=0) == pytest.approx([0.3, 0.1, 0.4], abs=1e-6)
    assert len(faces) == 12
    middles = corners[faces].mean(axis=1) - [0, 0, 0.2]
    assert (np.einsum("fd,fd->f", middles, normals) > 0).all()


@pytest.mark.parametrize("suffix", FORMATS[:3] + FORMATS[5:])
def test_every_format_with_textures_has_each_colour_on_its_side(cuboids: dict[str, dict], suffix: str) -> None:
    report = cuboids[suffix]
    (material,) = report["materials"]
    assert material["roughness"] == pytest.approx(0.4) and material["metallic"] == pytest.approx(0.25)
    assert material["pictures"]["Base Color"] == ["sRGB", 48, 48]
    if suffix != "obj":  # Blender reads no normal map from OBJ, but by the key of bump maps, and that one as sRGB
        assert material["pictures"]["Normal"] == ["Non-Color", 48, 48]
    for sample, normal in zip(report["samples"], report["normals"], strict=True):
        axis = int(np.abs(normal).argmax())
        (color,) = [color for (k, sign, color) in SIDES.values() if k == axis and sign * normal[axis] > 0]
        assert sample[3:] == pytest.approx([channel / 255 for channel in color], abs=0.003)


def test_a_ply_s_colours_are_srgb(cuboids: dict[str, dict]) -> None:
    """A corner has the mean of its three sides."""
    report = cuboids["ply"]
    assert len(report["colors"]) == 8
    index = int((np.array(report["corners"]) @ [-1, -1, 1]).argmax())
    expected = np.mean([SIDES[name][2] for name in ("-x", "-y", "+z")], axis=0) / 255
    assert report["colors"][index] == pytest.approx(expected.tolist(), abs=0.005)
