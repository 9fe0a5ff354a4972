"""docs/meshes.md says what the code does: settings with default and range, stages, formats, the words of the lines."""

from __future__ import annotations

import re
from pathlib import Path

import nerf_bridge
from nerf_bridge.config import MeshConfig
from nerf_bridge.mesh.export import STAGES
from nerf_bridge.mesh.write import USUAL_UP
from nerf_bridge.options import SHORT_NAMES
from nerf_bridge.settings import allowed

ROOT = Path(nerf_bridge.__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "meshes.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below the heading `title`, up to the next heading."""
    return re.split(r"^## ", PAGE.split(f"\n## {title}\n")[1], flags=re.MULTILINE)[0]


def first_columns(text: str) -> list[str]:
    """The first cell of each row of the tables in `text`, without their headings."""
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    return [cell for cell in rows if cell not in ("---", "line", "option", "stage", "suffix")]


def setting_row(name: str) -> str:
    info = MeshConfig.model_fields[name]
    option = SHORT_NAMES.get(f"mesh.{name}", f"--mesh.{name}")
    default = info.default
    if default is None or isinstance(default, bool):
        default = str(default).lower()
    elif isinstance(default, float):
        default = f"{default:g}"
    return f"| `{option}` | {default} | {allowed(info)} | {info.description} |"


def test_every_setting_is_there_with_its_default_and_range() -> None:
    rows = [line for line in section("Settings").splitlines() if line.startswith("| `")]
    assert rows == [setting_row(name) for name in MeshConfig.model_fields]


def test_every_stage_is_there_in_order() -> None:
    assert first_columns(section("Stage by stage")) == list(STAGES)


def test_every_format_is_there() -> None:
    named = [re.findall(r"`(\.\w+)`", cell)[0] for cell in first_columns(section("Formats"))]
    assert sorted(named) == sorted(USUAL_UP)


def test_the_stages_name_files_that_exist() -> None:
    named = re.findall(r"`(\w+\.py)`", section("Stage by stage"))
    assert named and all((ROOT / "nerf_bridge" / "mesh" / name).is_file() for name in named)


def test_the_lines_are_those_of_the_code() -> None:
    """Each quoted line is cut at its gaps; every piece of some length must stand in the sources as it is."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "nerf_bridge").rglob("*.py"))
    sources = re.sub(r'"\s+f?"', "", sources)  # a text that goes over several source lines
    lines = [line for cell in first_columns(section("Lines and remedies")) for line in re.findall(r"`([^`]+)`", cell)]
    pieces = [piece.strip() for line in lines for piece in line.split("…")]
    words = [piece for piece in pieces if len(piece) > 3 and piece != ": No space left on device"]
    assert len(lines) > 20 and [piece for piece in words if piece not in sources] == []
