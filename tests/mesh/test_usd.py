"""USDZ archives and what USD's own checks say of them."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cuboid import cuboid_asset
from hypothesis import given
from hypothesis import strategies as st
from pxr import Usd, UsdShade, UsdValidation

from nerf_bridge.config import MeshConfig
from nerf_bridge.mesh.usd import usdz_archive
from nerf_bridge.mesh.write import write_asset


@given(sizes=st.lists(st.integers(0, 200), min_size=1, max_size=5), length=st.integers(1, 40))
def test_every_file_of_an_archive_starts_at_a_multiple_of_64_bytes(sizes: list[int], length: int) -> None:
    content = {f"{k}" * length: bytes(range(size)) for k, size in enumerate(sizes)}
    data = usdz_archive(content)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        for entry, (name, held) in zip(archive.infolist(), content.items(), strict=True):
            assert entry.filename == name and entry.compress_type == zipfile.ZIP_STORED and archive.read(name) == held
            n_name, n_extra = struct.unpack_from("<HH", data, entry.header_offset + 26)
            assert (entry.header_offset + 30 + n_name + n_extra) % 64 == 0


@pytest.mark.parametrize("texture_format", ["png", "jpeg"])
@pytest.mark.parametrize("normal_map", [True, False])
def test_usd_s_own_validators_find_nothing(texture_format: str, normal_map: bool, tmp_path: Path) -> None:
    settings = MeshConfig(texture_format=texture_format)
    write_asset(tmp_path / "a.usdz", cuboid_asset(normal_map=normal_map), settings)
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    found = UsdValidation.ValidationContext(validators).Validate(Usd.Stage.Open(str(tmp_path / "a.usdz")))
    assert len(validators) > 10 and [error.GetMessage() for error in found] == []


def test_the_material_reads_colours_as_srgb_and_normals_as_they_are(tmp_path: Path) -> None:
    write_asset(tmp_path / "a.usdz", cuboid_asset(roughness=0.4, metallic=0.25), MeshConfig())
    stage = Usd.Stage.Open(str(tmp_path / "a.usdz"))
    surface = UsdShade.Shader(stage.GetPrimAtPath("/object/surface/preview"))
    assert surface.GetInput("roughness").Get() == pytest.approx(0.4) and surface.GetInput("metallic").Get() == 0.25
    for role, source, space in (("diffuseColor", "base_color", "sRGB"), ("normal", "normal", "raw")):
        ((connected, output, _),) = (surface.GetInput(role).GetConnectedSource(),)
        assert connected.GetPrim().GetName() == source and output == "rgb"
        assert UsdShade.Shader(connected).GetInput("sourceColorSpace").Get() == space
    normal = UsdShade.Shader(stage.GetPrimAtPath("/object/surface/normal"))
    decoded = np.array([0, 0.5, 1, 1]) * normal.GetInput("scale").Get() + np.array(normal.GetInput("bias").Get())
    assert decoded == pytest.approx([-1, 0, 1, 1])
