"""The benchmark of the whole command: what it measures and what it writes."""

from __future__ import annotations

import json

import pytest
from tiny_run import options

from benchmarks import generate as benchmark


def test_the_rows_are_medians_with_least_and_most():
    runs = [{"wall": 3.0, "to_asset": 2.5}, {"wall": 1.0, "to_asset": 0.5}, {"wall": 2.0, "to_asset": 1.5}]
    wall, asset = benchmark.rows_of("all", runs, 15.0)
    assert (wall.metric, wall.value, wall.p10, wall.p90, wall.floor) == ("wall", 2.0, 1.0, 3.0, None)
    assert (asset.metric, asset.value, asset.floor) == ("to_asset", 1.5, 15.0)


def test_a_run_that_fails_is_one_line(tmp_path, capsys):
    words = ["--device", "cpu", "--runs", "1", "--prompts", "a chair", "--results", str(tmp_path)]
    assert benchmark.main([*words, "--", "--stepz", "3"]) == 1
    assert "ended with status 2" in capsys.readouterr().err


@pytest.mark.slow
def test_the_stages_add_up_to_the_time_of_the_process(tmp_path, capsys):
    words = ["--device", "cpu", "--runs", "1", "--prompts", "a chair", "--results", str(tmp_path)]
    assert benchmark.main([*words, "--", *options(steps=2)[2:]]) == 0
    (path,) = tmp_path.glob("generate-*.json")
    assert str(path) in capsys.readouterr().out
    found = {row["metric"]: row["value"] for row in json.loads(path.read_text())["rows"] if row["case"] == "all"}
    stages = found["start"] + found["prior"] + found["optimise"] + found["mesh"]
    assert 0.9 * found["to_asset"] < stages <= found["to_asset"] + 0.1
    assert found["to_asset"] < stages + found["report"] <= found["wall"]
