"""What the Frechet distance answers to: all that is wrong has a row, and is farther from truth than what is right."""

from __future__ import annotations

import json

import pytest
import torch
from evaluate.small_world import library, random_judge

from benchmarks import frechet
from nerf_bridge.evaluate.truth import read_prompt


@pytest.mark.compiler
def test_what_is_wrong_is_farther_from_the_truth(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(frechet, "VIEWS", 4)
    monkeypatch.setattr(frechet, "load_library", lambda path: list(library()))
    monkeypatch.setattr(frechet, "load_judge", lambda folder, device: random_judge())
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a green sofa\na red horse\na blue desk\na yellow vase\na pink armchair\n")
    out = tmp_path / "results"
    assert frechet.main(["--library", "here", "--prompts", str(prompts), "--results", str(out)]) == 0
    (path,) = out.glob("frechet-*.json")
    found = {row["case"]: row["value"] for row in json.loads(path.read_text())["rows"]}
    floor = found.pop("nothing but the shades")
    assert len(found) == len(frechet.changes()) + 2 * len(frechet.COUNTS) and "blurred" in capsys.readouterr().out
    assert floor < found["blurred by 0.5 pixels"] < found["blurred by 1 pixel"]
    assert floor < found["1 of 5 in another word's colour"] < found["4 of 5 in another word's colour"]
    assert floor < found["1 of 5 shown as another model"] < found["4 of 5 shown as another model"]


def test_a_prompt_without_a_colour_or_another_model_is_left_as_it_is():
    models = [m for m in library() if not m.holdout]
    assert frechet.recoloured(read_prompt("a sofa", models), models) is None
    chair = read_prompt("a green chair", models)  # the other chair is held out
    assert frechet.remodelled(chair, models) is None
    assert frechet.recoloured(chair, models).colour not in (None, "green")


def test_a_blur_keeps_what_is_even_and_the_mean():
    even = torch.full((2, 3, 16, 16), 0.3)
    assert torch.allclose(frechet.blurred(even, 2.0), even, atol=1e-6)
    point = torch.zeros(1, 3, 33, 33)
    point[..., 16, 16] = 1
    soft = frechet.blurred(point, 2.0)
    assert torch.allclose(soft.sum((2, 3)), torch.ones(1, 3), atol=1e-5)
    row = soft[0, 0, 16] / soft[0, 0, 16].sum()
    x = torch.arange(33) - 16.0
    assert float((row * x * x).sum()) == pytest.approx(4.0, rel=0.05)


def test_a_library_that_is_not_there_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        frechet.main(["--library", "no.npz"])
    assert stopped.value.code == 2 and "no.npz" in capsys.readouterr().err.splitlines()[-1]
