"""Prompt to mesh with the tiny pipeline of every family, through the same commands as the big ones."""

import json
import re

import pytest
import torch
from prior.models.tiny_models import FAMILIES
from tiny_run import Killed, options, outcome, shorten_turntable, tiny_config

from nerf_bridge import cli, optimize, pipeline
from nerf_bridge.errors import UserError
from nerf_bridge.image_config import build_image_config
from nerf_bridge.mesh.gltf import load_textured_mesh
from nerf_bridge.prior import load_prior
from nerf_bridge.prior.models import prompt_cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Prompts are not kept in the user's cache."""
    monkeypatch.setattr(prompt_cache, "prompt_folder", lambda: tmp_path / "prompts")
    shorten_turntable(monkeypatch)


SETTINGS = {"model__image_size": 16, "steps": 3, "guidance__bridge_from": 0.5}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_to_mesh(family, tiny_model, tmp_path):
    words = options(**SETTINGS, prior=tiny_model(family), camera__views=4 if family == "mvdream" else 2)
    assert cli.main(["generate", "a green chair", "--out", str(tmp_path / "run"), *words]) == 0
    mesh = load_textured_mesh(tmp_path / "run" / "asset.glb")
    assert mesh.faces.shape[0] > 10
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["state"] == "done" and record["prior"]["name"] == str(tiny_model(family))
    assert any(name.endswith(".safetensors") for name in record["prior"]["sha256"])


SCHEDULED = {
    "model__image_size": 16,
    "steps": 8,
    "checkpoint_every": 1,
    "preview_every": 8,
    "render__size": 64,
    "render__early_size": 16,
    "render__early_until": 0.25,
    "render__grow_until": 0.5,
    "occupancy__every": 2,
    "occupancy__late_every": 3,
    "guidance__bridge_from": 0.75,
    "guidance__bridge_weighting": "one",
    "guidance__t_max_from": 0.25,
    "guidance__t_max_until": 0.25,
    "optim__ramp_from": 0.5,
    "optim__ramp_until": 0.5,
}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "views", "at"), [("sd-epsilon", 1, 2), ("sd-epsilon", 4, 7), ("mvdream", 4, 5)])
def test_a_killed_run_goes_on_in_the_right_stage(family, views, at, tiny_model, tmp_path, monkeypatch):
    """Sizes, stages, noise times, looks and ramps of every step are those of an unbroken run, and so is every byte."""
    config = tiny_config(**SCHEDULED, prior=str(tiny_model(family)), camera__views=views)
    pipeline.generate(config, tmp_path / "unbroken")
    calls = {"steps": 0, "seen": []}
    step_of, views_of, gradient = optimize.training_step, optimize.render_views, optimize.guidance_gradient

    def step(*arguments):
        calls["steps"] += 1
        if calls["steps"] == at:
            raise Killed
        calls["seen"].append((arguments[5].step,))
        return step_of(*arguments)

    def render(*arguments):
        rendering, condition = views_of(*arguments)
        calls["seen"][-1] += (rendering.color.shape[1],)
        return rendering, condition

    def guide(*arguments):
        calls["seen"][-1] += (arguments[-1], len(arguments[1]))
        return gradient(*arguments)

    monkeypatch.setattr(optimize, "training_step", step)
    monkeypatch.setattr(optimize, "render_views", render)
    monkeypatch.setattr(optimize, "guidance_gradient", guide)
    with pytest.raises(Killed):
        pipeline.generate(config, tmp_path / "run")
    pipeline.generate(config, tmp_path / "run")
    size = dict(enumerate([16, 16, 32, 32, 64, 64, 64, 64]))
    expected = [(step, size[step], 1 if step < 6 else 2, views) for step in range(8)]
    assert calls["seen"] == expected
    assert outcome(tmp_path / "run") == outcome(tmp_path / "unbroken")


def test_views_must_make_whole_groups(tiny_model, tmp_path, capsys):
    words = options(**SETTINGS, prior=tiny_model("mvdream"), camera__views=2)
    assert cli.main(["generate", "a chair", "--out", str(tmp_path / "run"), *words]) == 2
    assert "takes 4 views at a time, got 2; use a multiple of 4" in capsys.readouterr().err


@pytest.mark.slow
def test_a_prior_that_needs_no_cameras_gets_the_view_in_words(tiny_model, tmp_path):
    config = tiny_config(**SETTINGS, prior=str(tiny_model("sd-v")))
    prior = load_prior(config.prior, "cpu", config.model)
    asked = []
    words = prior.words
    prior.words = lambda prompts: asked.extend(prompts) or words(prompts)
    pipeline.generate(config, tmp_path / "run", prior)
    assert "a green chair, back view" in asked


@pytest.mark.parametrize("family", ["sd-epsilon", "mvdream"])
def test_image_of_a_prompt(family, tiny_model, tmp_path):
    words = ["--prior", str(tiny_model(family)), "--steps", "2", "--device", "cpu"]
    assert cli.main(["image", "a chair", "--out", str(tmp_path / "i.png"), *words]) == 0
    assert (tmp_path / "i.png").stat().st_size > 100


def test_an_image_may_start_from_noise(tiny_model):
    from nerf_bridge import image

    config = build_image_config({"prompt": "a chair", "start": "noise", "seed": 4})
    prior = load_prior(str(tiny_model("sd-epsilon")))
    start = image._start(config, prior, torch.device("cpu"))
    assert start.shape == (1, 4, 8, 8) and abs(start.mean()) < 0.2 and 0.8 < start.std() < 1.2


@pytest.mark.parametrize(
    ("prior", "says"),
    [
        ("/no/such/folder", "prior /no/such/folder: there is no such folder"),
        ("sd21-bas", "unknown prior 'sd21-bas' .*did you mean 'sd21-base'"),
    ],
)
def test_a_wrong_prior_is_told_before_the_work(prior, says, tmp_path, capsys):
    assert cli.main(["generate", "a chair", "--out", str(tmp_path / "run"), "--prior", prior]) == 2
    assert re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_the_embedded_prior_has_no_such_settings(tmp_path, capsys):
    words = options(model__loras="style.safetensors")
    assert cli.main(["generate", "a chair", "--out", str(tmp_path / "run"), *words]) == 2
    assert "model.loras is for other priors: the embedded one is as it is" in capsys.readouterr().err


def test_the_preset_for_images_is_no_preset_for_meshes(capsys):
    assert cli.main(["generate", "a chair", "--config", "published-2d"]) == 2
    assert "the preset published-2d is for the command `image`; for generate: published-3d" in capsys.readouterr().err


def test_a_folder_without_a_model_is_told(tmp_path):
    with pytest.raises(UserError, match="model_index.json is missing; expected a model in diffusers' format"):
        load_prior(str(tmp_path))
