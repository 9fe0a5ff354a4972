"""The command that times the guidance: its networks have the published sizes, and every case runs, shrunk, on a CPU."""

from __future__ import annotations

import dataclasses
import json

import diffusers
import pytest
import torch

from benchmarks import (
    guidance,
    guidance_cases,
    guidance_models,
    guidance_start,
    guidance_steps,
    render_cases,
    report,
)
from benchmarks.guidance_models import FAMILIES, Build
from benchmarks.kernel_cases import Setting
from benchmarks.timing import Ceilings
from nerf_bridge.errors import UserError
from nerf_bridge.graphed_render import GraphedRender

STAGES = ("render", "encode", "predict", "backward", "optimiser")
CPU, META = torch.device("cpu"), torch.device("meta")
TRIAL = Setting(CPU, "torch", 32, False, Ceilings(1e10, 1e11, (1.0, 1.0)))


@pytest.fixture(autouse=True)
def quiet():
    before = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()
    yield
    diffusers.utils.logging.set_verbosity(before)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("sd21", 865.9), ("sdxl", 2567.5), ("sd3", 2028.3), ("flux", 11891.2), ("if-xl", 4304.7), ("mvdream", 867.6)],
)
def test_networks_have_the_published_numbers_of_parameters(name, millions):
    network = guidance_models.make_network(FAMILIES[name], Build(META, tiny=False))
    assert guidance_models.n_parameters(network) == pytest.approx(millions * 1e6, rel=1e-4)


def test_operations_are_those_of_the_tables():
    """1.61 TFLOP for the U-Net at batch 2, 1.12 and 2.28 for the encoder at 512 x 512."""
    family, build = FAMILIES["sd21"], Build(CPU, tiny=False)
    flop, weights = guidance_cases.network_work(family, build, 2)
    forward, both = guidance_cases.encoder_work(family, build, 1)
    assert (flop, forward, both) == pytest.approx((1.61e12, 1.12e12, 2.28e12), rel=0.02)
    assert weights == pytest.approx(4 * 865.9e6, rel=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_ours_and_the_eager_prior_guide_alike(name):
    """With the same seed they have the same weights: the plain version is the same function, only slower."""
    grads = []
    for ours in (True, False):
        torch.manual_seed(5)
        build = Build(CPU, tiny=True)
        views = 4 if name == "mvdream" else 1
        guide = guidance_cases.guidance_of(guidance_models.make_prior(FAMILIES[name], build, ours), views)
        size = build.image_size(FAMILIES[name])
        images = torch.rand(views, 3, size, size, generator=torch.Generator().manual_seed(6)).requires_grad_()
        torch.manual_seed(7)
        grads.append(torch.autograd.grad(guide(images), images)[0])
    assert float(grads[1].abs().max()) > 0
    assert torch.allclose(*grads, atol=1e-3 * float(grads[1].abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step_64", "step_512_ball"])
def test_the_stages_do_what_the_step_does(name):
    """Stage by stage and in one go the same gradients come out, for ours and for the eager step."""
    case = guidance_steps.STEP_CASES[name](name)
    config = guidance_steps.step_config(case, TRIAL.shrink)
    step = guidance_steps.FIRST[case.size]
    found = []
    for kind in ("eager, our render", "eager"):
        for whole in (True, False):
            scene = guidance_steps.make_scene(case, config, TRIAL.backend, TRIAL.device)
            torch.manual_seed(8)
            runner = guidance_steps.make_runner(scene, config, TRIAL, kind)
            if whole:
                guidance_steps.run_step(runner, step)
            else:
                stages = guidance_steps.Stages(runner, iter([step]))
                for stage in (stages.render, stages.encode, stages.predict, stages.backward, stages.optimise):
                    stage()
            found.append(scene.field.hidden_weight.grad.clone())
    largest = float(found[0].abs().max())
    assert largest > 0 and torch.equal(found[0], found[1]) and torch.equal(found[2], found[3])
    assert torch.allclose(found[0], found[2], atol=0.02 * largest)


def test_the_views_that_are_timed_come_from_a_graph_as_in_a_run(monkeypatch):
    rooms = []
    monkeypatch.setattr(GraphedRender, "_capture", lambda self, look, room, inputs: rooms.append((look.size, room)))
    case = guidance_steps.STEP_CASES["step_64"]("step_64")
    config = guidance_steps.step_config(case, TRIAL.shrink)
    scene = guidance_steps.make_scene(case, config, TRIAL.backend, TRIAL.device)
    runner = guidance_steps.make_runner(scene, config, TRIAL, "ours")
    for views in (GraphedRender(scene, enabled=False), GraphedRender(scene, enabled=True)):
        assert rooms == []
        guidance_steps.come_to_pace(dataclasses.replace(runner, views=views), guidance_steps.FIRST[case.size])
    assert len(rooms) == 1 and rooms[0][0] == config.render.early_size


@pytest.mark.slow
def test_the_command_times_every_case_and_writes_the_results(tmp_path, capsys):
    out = tmp_path / "results" / "guidance.json"
    options = ["--device", "cpu", "--shrink", "32", "--seconds", "0.001", "--out", str(out)]
    cases = ["unet_b2", "vae_512", "step_64", "guidance", "start"]  # the others differ from these in their sizes
    assert guidance.main([*options, "--cases", *cases, "--families", "if-m", "flux"]) == 0
    results = json.loads(out.read_text())
    assert results["left_out"] == [] and results["versions"]["torch"]
    rows = {(row["case"], row["metric"], row.get("peer")): row for row in results["rows"]}
    assert rows["unet_b2", "forward", "eager"]["floor"] > 0
    assert rows["vae_512", "both", "eager"]["peer_value"] > 0
    assert rows["vae_512", "gradient error", "eager"]["value"] < 0.01
    for metric in ("step", *STAGES):
        assert rows["step_64", metric, "eager"]["value"] > 0 and rows["step_64", metric, "eager, our render"]
    assert rows["step_64", "occupancy update", None]["unit"] == "ms"
    assert rows["step_64", "step", "eager"]["repetitions"] >= 3
    floors = {metric: rows["step_64", metric, "eager"]["floor"] for metric in STAGES}
    assert rows["step_64", "step", "eager"]["floor"] == pytest.approx(sum(floors.values()), rel=1e-3)
    assert 0 < rows["step_64", "visible", None]["value"] <= rows["step_64", "samples", None]["value"]
    assert 0 < rows["step_64", "touched", None]["value"] < rows["step_64", "numbers", None]["value"]
    assert "step_512_ball" in results["not_measured"] and "guidance_sdxl" in results["not_measured"]
    assert not {"step_64", "guidance_flux", "start"} & set(results["not_measured"])
    assert rows["guidance_flux", "both", "eager"]["floor"] > 0 and rows["guidance_if-m", "backward", "eager"]
    assert rows["start, second run", "first step", None]["unit"] == "s"
    assert "guidance_flux" in capsys.readouterr().out


def test_the_floors_of_a_step_are_sums_over_what_it_does():
    counts = guidance_steps.StepCounts(samples=1000, visible=800, numbers=10_000, touched=3000)
    floors = guidance_steps.step_floors(counts, TRIAL)
    assert floors["step"] == pytest.approx(sum(floors[stage] for stage in STAGES))
    render = render_cases.render_floors(TRIAL, 10_000, 3000, 800)
    assert floors["render"] == render["forward"] and floors["backward"] > render["backward"]
    assert floors["optimiser"] == TRIAL.floor(4 * 10_000 + 24 * 3000)
    less = guidance_steps.step_floors(dataclasses.replace(counts, visible=0, numbers=0, touched=0), TRIAL)
    assert floors["step"] - less["step"] == pytest.approx(render["forward"] + render["backward"] + floors["optimiser"])


def test_the_light_reaches_only_some_of_the_samples_of_a_ball():
    case = guidance_steps.STEP_CASES["step_512_ball"]("step_512_ball")
    config = guidance_steps.step_config(case, TRIAL.shrink)
    scene = guidance_steps.make_scene(case, config, TRIAL.backend, TRIAL.device)
    samples, visible = guidance_steps.view_counts(scene, config, guidance_steps.FIRST[512])
    assert 0.2 * samples < visible < 0.8 * samples


def test_without_a_gpu_the_command_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert guidance.main([]) == 2
    assert capsys.readouterr().err == (
        "--device cuda: torch sees no CUDA GPU; use --device cpu --shrink 32 for a trial\n"
    )


def test_a_peer_that_cannot_run_is_left_out_and_ours_is_kept():
    def fail():
        raise RuntimeError("out of\n memory")

    ours = guidance_cases.Version("ours", lambda: [torch.zeros(1)])
    case = guidance_cases.GuidanceCase("a", {"ours": lambda: ours, "eager": fail}, {"forward": 0.1}, {"views": 1}, {})
    rows, left_out = guidance.run_alone(case, guidance.Clock(CPU, 1e-4, False))
    assert [row["metric"] for row in rows] == ["forward", "views"] and rows[0]["floor"] == 0.1
    assert left_out == ["a, eager: out of memory"]


def test_results_of_several_runs_are_joined():
    old = {"device": "d", "versions": {}, "settings": {}, "commit": "c", "left_out": ["a, eager: x", "b, eager: y"]}
    old["rows"] = [{"case": "a", "value": 1}, {"case": "b", "value": 2}]
    new = {
        "device": "d",
        "versions": {},
        "settings": {},
        "commit": "c",
        "left_out": [],
        "rows": [{"case": "a", "value": 3}],
    }
    both = guidance.joined(old, new)
    assert both["not_measured"] == list(guidance.ROWS_OF)
    assert both["rows"] == [{"case": "a", "value": 3}, {"case": "b", "value": 2}]
    assert both["left_out"] == ["b, eager: y"]
    with pytest.raises(UserError, match="the results file is of the device 'e', this run of 'd'"):
        guidance.joined(old | {"device": "e"}, new)
    with pytest.raises(UserError, match="of the settings {'quick': True}"):
        guidance.joined(old | {"settings": {"quick": True}}, new)
    mended = [{"case": "start, empty cache", "value": 1}]
    assert guidance.joined(old | {"left_out": ["start: failed: x"]}, new | {"rows": mended})["left_out"] == []


def test_rows_of_another_commit_keep_its_name():
    first = {"device": "d", "versions": {}, "settings": {}, "commit": "one", "left_out": []}
    first["rows"] = [{"case": "a", "value": 1}, {"case": "b", "value": 2}]
    second = guidance.joined(first, first | {"commit": "two", "rows": [{"case": "a", "value": 3}]})
    assert second["rows"] == [{"case": "a", "value": 3}, {"case": "b", "value": 2, "commit": "one"}]
    third = guidance.joined(second, first | {"commit": "three", "rows": [{"case": "c", "value": 4}]})
    assert report.commits(third) == "commit three; at commit two: a; at commit one: b"
    assert guidance.joined(third, first | {"rows": []})["rows"][2] == {"case": "b", "value": 2}


@pytest.mark.compiler
def test_the_first_step_is_timed_where_nothing_is_compiled():
    """By torch.compile, on a CPU; the renderer's kernels are."""
    found = guidance_start.measure(CPU, 32)
    assert found["swapped"] == 0 and 0 < found["first step"] <= found["compiled after"]
