"""The picture of the schedules is that of the presets as they are, and its page names them all."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks import schedules
from nerf_bridge.config import build_config
from nerf_bridge.memory.estimate import GIB, needs_on
from nerf_bridge.memory.ladder import PRESETS, RUNGS
from nerf_bridge.options import presets
from nerf_bridge.paths import config_path
from nerf_bridge.settings import load_yaml

DOCS = Path(schedules.ROOT) / "docs"


def test_the_picture_is_up_to_date(tmp_path):
    assert schedules.main(["--out", str(tmp_path / "schedules.svg")]) == 0
    drawn = (tmp_path / "schedules.svg").read_text(encoding="utf-8")
    assert drawn == (DOCS / "schedules.svg").read_text(encoding="utf-8"), "run python -m benchmarks.schedules"
    words = [element.text for element in ElementTree.fromstring(drawn).iter() if element.text]
    assert {name for name in presets() if not name.endswith("-2d")} <= set(words)


def test_the_page_names_every_preset_and_shows_the_picture():
    page = (DOCS / "schedules.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in presets())
    assert "(schedules.svg)" in page and "(schedules.md)" in (DOCS / "priors.md").read_text(encoding="utf-8")


def test_a_curve_is_what_the_run_will_do():
    config = build_config(
        {
            "prompt": "a",
            "steps": 100,
            "render.size": 64,
            "render.early_size": 16,
            "render.early_until": 0.2,
            "render.grow_until": 0.6,
            "occupancy.every": 8,
            "occupancy.late_every": 20,
        }
    )
    assert schedules.sizes(config).values == (16.0,) * 20 + (32.0,) * 40 + (64.0,) * 40
    times = schedules.noise_times(config)
    assert times.floor and (times.floor[0], times.floor[-1]) == pytest.approx((0.8, 0.1))
    assert (times.values[0], times.values[-1]) == pytest.approx((0.98, 0.45))
    gaps = schedules.occupancy(config).values
    assert gaps[0] == 8 and gaps[99] == 20 and gaps[48] == 12  # from the look at 48 to that at 60


def test_a_place_that_cannot_be_written_is_told(tmp_path, capsys):
    assert schedules.main(["--out", str(tmp_path / "none" / "below.svg")]) == 2
    assert "below.svg" in capsys.readouterr().err


def test_fast_does_the_published_work_in_far_less():
    fast, slow = (
        build_config({"prompt": "a"} | load_yaml(config_path(f"{name}.yaml"))) for name in ("fast", "published-3d")
    )
    from nerf_bridge.guidance import size_at

    rays = [
        c.camera.views * sum(size_at(step, c.steps, c.render) ** 2 for step in range(c.steps)) for c in (fast, slow)
    ]
    assert [round(n / 1e9, 2) for n in rays] == [0.42, 5.26]
    assert 8 * fast.steps < slow.steps and fast.render.size == slow.render.size


@pytest.mark.parametrize(("column", "model"), [(3, "SD21"), (4, "SDXL"), (5, "FLUX")])
def test_the_pages_table_of_the_ladder_is_the_estimate(column, model):
    from memory import test_preflight

    page = (DOCS / "priors.md").read_text(encoding="utf-8")
    config = test_preflight.published()
    for rung in RUNGS:
        row = re.search(rf"^\| `{rung.name}` \|.*$", page, re.MULTILINE)[0].split("|")
        said = needs_on(rung, config, getattr(test_preflight, model), True).step / GIB
        assert float(row[column]) == round(said, 1), (rung.name, said)
    for preset in PRESETS:
        row = re.search(rf"^\| `{preset.name}` \| `(\w+)` \| (.*) \|$", page, re.MULTILINE)
        assert row[1] == RUNGS[preset.rung].name
        assert row[2] == (f"{preset.largest_view} pixels" if preset.largest_view else "as `render.size` says")
