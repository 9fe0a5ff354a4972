"""The add-on's zip: what is in it, the documented command, what Blender's own check says."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import nerf_bridge
from nerf_bridge.paths import data_path

ROOT = Path(nerf_bridge.__file__).resolve().parents[1]
ADDON = data_path("blender/nerf_bridge_addon")
NAME = f"nerf_bridge_blender-{nerf_bridge.__version__}.zip"
pack = runpy.run_path(str(data_path("blender/pack.py")))["pack"]


def run_pack(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(data_path("blender/pack.py")), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_zip_holds_the_addon_and_nothing_else(tmp_path: Path) -> None:
    archive = pack(tmp_path)
    assert archive == tmp_path / NAME and list(tmp_path.iterdir()) == [archive]
    with zipfile.ZipFile(archive) as opened:
        found = {name: opened.read(name) for name in opened.namelist()}
    there = [path for path in ADDON.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert found == {path.relative_to(ADDON).as_posix(): path.read_bytes() for path in there}
    assert {"__init__.py", "blender_manifest.toml"} < set(found)


def test_the_same_addon_gives_the_same_bytes(tmp_path: Path) -> None:
    first = pack(tmp_path).read_bytes()
    assert pack(tmp_path).read_bytes() == first


def test_the_addon_has_the_version_of_the_package() -> None:
    manifest = tomllib.loads((ADDON / "blender_manifest.toml").read_text(encoding="utf-8"))
    assert manifest["version"] == nerf_bridge.__version__


@pytest.mark.blender
def test_blender_finds_the_manifest_in_order(tmp_path: Path) -> None:
    (folder,) = find_spec("bpy").submodule_search_locations
    (script,) = Path(folder).glob("*/scripts/addons_core/bl_pkg/cli/blender_ext.py")
    command = [sys.executable, str(script), "validate", str(pack(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_documented_command_works_in_an_installed_package(tmp_path: Path) -> None:
    """A wheel has data/ inside the package; the command must find it there, too."""
    site, out = tmp_path / "site", tmp_path / "out"
    (site / "nerf_bridge").mkdir(parents=True)
    out.mkdir()
    for name in ("__init__.py", "paths.py"):
        shutil.copy(ROOT / "nerf_bridge" / name, site / "nerf_bridge" / name)
    shutil.copytree(data_path("blender"), site / "nerf_bridge" / "data" / "blender")
    text = (ROOT / "docs" / "blender.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^\.venv/bin/(python -c .+pack.+)$", text, re.MULTILINE)
    words = [sys.executable, *shlex.split(command)[1:]]
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(words, cwd=out, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{NAME}\n" and (out / NAME).is_file()


def test_a_folder_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    done = run_pack(str(tmp_path / "none"))
    assert done.returncode == 2
    assert done.stderr == f"cannot pack the add-on into {tmp_path / 'none'}: No such file or directory\n"


def test_an_archive_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    done = run_pack(str(tmp_path))
    assert done.returncode == 2 and "Is a directory" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
