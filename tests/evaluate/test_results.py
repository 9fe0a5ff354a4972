"""Tables, files and sheets of an evaluation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from nerf_bridge.errors import RunError
from nerf_bridge.evaluate.measures import Spread
from nerf_bridge.evaluate.results import Row, commit, format_table, spread_row, write_results
from nerf_bridge.evaluate.sheet import Strip, draw_sheet, save_sheet

ROWS = [
    spread_row("bridge", "frechet", Spread(12.345, 11.0, 13.5), "of features", floor=2.5),
    spread_row("bridge", "saturation", Spread(0.5, 0.4, 0.6), "0..1", truth=0.45),
    Row("all", "prompts", 20, "count", peer="ideal", peer_value=0.5),
]


def test_the_table_has_truth_and_spread_beside_the_value():
    head, *lines = format_table(ROWS).splitlines()
    assert head.split() == ["case", "metric", "value", "p10", "...", "p90", "truth", "or", "peer", "floor", "unit"]
    assert lines[0].split() == ["bridge", "frechet", "12.35", "11", "...", "13.5", "2.5", "of", "features"]
    assert lines[1].split() == ["bridge", "saturation", "0.5", "0.4", "...", "0.6", "0.45", "0..1"]
    assert lines[2].split() == ["all", "prompts", "20", "0.5", "(ideal)", "count"]
    assert head.index("unit") == lines[1].index("0..1")


def test_results_are_of_the_common_format(tmp_path):
    path = write_results(tmp_path / "new", "evaluate-prior", "An H100", {"torch": "2"}, ROWS, {"plan": {"seeds": 3}})
    document = json.loads(path.read_text())
    assert path.name == "evaluate-prior-an-h100.json"
    assert {"device", "commit", "date", "versions", "rows", "plan"} == document.keys()
    assert document["rows"][1] == {
        "case": "bridge", "metric": "saturation", "value": 0.5, "unit": "0..1", "p10": 0.4, "p90": 0.6,
        "peer": "truth", "peer_value": 0.45,
    }  # fmt: skip
    assert "floor" not in document["rows"][2] and document["rows"][0]["floor"] == 2.5


def test_a_tree_without_its_history_is_told_its_commit(monkeypatch):
    monkeypatch.setenv("NERF_BRIDGE_COMMIT", "abc1234")
    assert commit() == "abc1234"


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        write_results(tmp_path / "file", "x", "y", {}, ROWS, {})
    with pytest.raises(RunError, match="cannot write"):
        save_sheet(tmp_path / "file" / "x.png", Image.new("RGB", (2, 2)))


def test_the_sheet_shows_every_picture_and_word(tmp_path):
    red = torch.tensor([0.9, 0.1, 0.1])[None, :, None, None].expand(2, 3, 64, 32)
    strips = [Strip(red, "a tall red thing"), Strip(red, "missed", bad=True), Strip(red[:1], "short")]
    sheet = draw_sheet(strips, 2, 32, "heading")
    save_sheet(tmp_path / "deep" / "sheet.png", sheet)
    pixels = np.asarray(Image.open(tmp_path / "deep" / "sheet.png")).astype(int)
    painted = (pixels[..., 0] > 220) & (pixels[..., 1] < 40)
    assert painted.sum() == 5 * 64 * 32  # as tall as they are, nothing squeezed or cut
    dark, warning = (pixels.max(-1) < 100), (pixels[..., 0] > 150) & (pixels[..., 1] < 80) & (pixels[..., 0] < 200)
    assert dark.sum() > 30 and warning.sum() > 10
