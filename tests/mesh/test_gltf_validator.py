"""Every glTF file of ours is without errors and warnings for the Khronos validator."""

from __future__ import annotations

import itertools
import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from analytic_fields import (
    BLUE,
    GREEN,
    RED,
    YELLOW,
    AnalyticField,
    all_occupied,
    box,
    l_field,
    silhouettes_of,
    sphere,
    sphere_field,
    torus_field,
)
from cuboid import cuboid_asset
from khronos import validate
from proof_scene import METADATA, exported_asset, proof_field

from nerf_bridge.config import MeshConfig
from nerf_bridge.mesh.export import export_mesh
from nerf_bridge.mesh.write import write_asset

pytestmark = [pytest.mark.validator, pytest.mark.slow]

SMALL = MeshConfig(resolution=32, faces=600, texture=128)
FIELDS = {
    "sphere": sphere_field(),
    "torus": torus_field(),
    "l": l_field(),
    "proof": proof_field(),
    "two-bodies": AnalyticField([(sphere((-0.5, 0, 0), 0.35), RED), (box((0.5, 0, 0), (0.3, 0.3, 0.5)), BLUE)]),
    "plate": AnalyticField([(box((0, 0, 0), (0.8, 0.8, 0.08)), GREEN)]),
    "touches-the-box": AnalyticField([(box((0, 0, -0.5), (1.2, 0.4, 0.6)), YELLOW)]),
    "table": AnalyticField(
        [(box((0, 0, 0.3), (0.7, 0.5, 0.1)), GREEN)]
        + [(box((x, y, -0.2), (0.1, 0.1, 0.5)), RED) for x in (-0.5, 0.5) for y in (-0.3, 0.3)]
    ),
}
SETTINGS = {
    "defaults": {},
    "jpeg": {"texture_format": "jpeg"},
    "webp": {"texture_format": "webp"},
    "plain": {"normal_map": False, "roughness": 0.0, "metallic": 1.0},
    "smooth": {"smooth": 5, "pivot": "center", "height_m": 0.45},
    "open": {"watertight": False, "pivot": "origin", "height_m": 900.0},
    "few": {"faces": 100, "texture": 64, "height_m": 0.001},
}


def assert_clean(paths: list[Path]) -> None:
    for path, issues in validate(paths).items():
        assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), (path, issues["messages"][:3])


def test_the_validator_finds_mistakes(tmp_path: Path) -> None:
    """What is broken on purpose is not clean: else the tests below would say nothing."""
    path = tmp_path / "a.glb"
    write_asset(path, cuboid_asset(), MeshConfig())
    data = path.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    document = json.loads(data[20 : 20 + length])
    document["accessors"][1]["max"][0] += 1
    del document["meshes"][0]["primitives"][0]["attributes"]["TANGENT"]
    changed = json.dumps(document, separators=(",", ":")).encode().ljust(length)
    path.write_bytes(data[:20] + changed[:length] + data[20 + length :])
    (issues,) = validate([path]).values()
    codes = {message["code"] for message in issues["messages"] if message["severity"] < 2}
    assert codes == {"ACCESSOR_MAX_MISMATCH", "MESH_PRIMITIVE_GENERATED_TANGENT_SPACE"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """24 assets, the whole way from the field: every shape with three of the settings, in turn."""
    folder = tmp_path_factory.mktemp("exported")
    chosen = list(zip([shape for shape in FIELDS for _ in range(3)], itertools.cycle(SETTINGS), strict=False))
    paths = []
    for shape, name in chosen:
        settings = SMALL.model_copy(update=SETTINGS[name])
        paths.append(folder / f"{shape}-{name}.glb")
        seen = silhouettes_of(FIELDS[shape], 4, 32)
        export_mesh(FIELDS[shape], all_occupied(), seen, settings, paths[-1], METADATA, "torch", "cpu")
    return paths


def test_exported_fields_are_clean(exported: list[Path]) -> None:
    assert len(set(exported)) == 24
    assert_clean(exported)


def test_all_settings_of_the_file_are_clean_together(tmp_path: Path) -> None:
    asset = exported_asset(proof_field(), SMALL, tmp_path)
    choices = itertools.product(
        (".glb", ".gltf"), ("png", "jpeg", "webp"), (True, False), ("bottom", "center", "origin"), (None, 0.45)
    )
    paths = []
    for number, (suffix, texture_format, with_normals, pivot, height_m) in enumerate(choices):
        settings = MeshConfig(texture_format=texture_format, pivot=pivot, height_m=height_m)
        material = asset.material if with_normals else replace(asset.material, normal=None)
        paths.append(tmp_path / f"a{number}{suffix}")
        write_asset(paths[-1], replace(asset, material=material), settings)
    assert len(paths) == 72
    assert_clean(paths)


def test_the_atlas_of_last_resort_is_clean(tmp_path: Path) -> None:
    settings = SMALL.model_copy(update={"unwrap_seconds": 1e-3})
    statistics = export_mesh(
        torus_field(),
        all_occupied(),
        silhouettes_of(torus_field(), 4, 32),
        settings,
        tmp_path / "a.glb",
        {},
        "torch",
        "cpu",
    )
    assert statistics.unwrap != "xatlas"
    assert_clean([tmp_path / "a.glb"])
