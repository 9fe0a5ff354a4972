"""The optimisation loop, part by part: what a step does, what it is asked, and what happens after it."""

import math
import os
import signal
import threading

import numpy as np
import pytest
import torch
from tiny_run import CountingOracle, steps_of, tiny_config

from nerf_bridge import optimize
from nerf_bridge.draws import Draws, draw_views
from nerf_bridge.guidance import Answer, encode_words
from nerf_bridge.ops.backend import resolve_backend
from nerf_bridge.optimize import (
    Health,
    after_step,
    optimise,
    preview_image,
    render_views,
    training_step,
    update_occupancy,
)
from nerf_bridge.regularisers import regularisers, roughness
from nerf_bridge.render import Rendering
from nerf_bridge.run.directory import RunDirectory
from nerf_bridge.run.events import EventLog, read_events
from nerf_bridge.run.health import SKIPS_IN_A_ROW, StepGuard
from nerf_bridge.run.state import Progress, build_optimiser, save, scene_tensors
from nerf_bridge.run.stop_signals import stop_signals
from nerf_bridge.scene.background import backgrounds
from nerf_bridge.scene.scene import build_scene

CPU = torch.device("cpu")
GOOD, BAD = Health(0.5, 1.0, True), Health(0.5, math.nan, False)


def make(**changes):
    """Config, scene and optimiser of a small run."""
    config = tiny_config(**{"steps": 20, **changes})
    scene = build_scene(config, resolve_backend("auto", CPU), CPU)
    return config, scene, build_optimiser(scene, config)


def step(config, scene, optimiser, progress, prior=None):
    prior = prior or CountingOracle()
    words = encode_words(prior, config.prompt, config.guidance)
    return training_step(scene, optimiser, prior, Draws(config, words, prior.view_group, CPU), config, progress)


def parameters(scene):
    return torch.cat([p.detach().flatten().clone() for p in scene.field.parameters()])


class NaNs(CountingOracle):
    def at_step(self, step, noised):
        return torch.full_like(noised, math.nan)


def test_a_step_moves_the_field_and_says_how_it_went():
    config, scene, optimiser = make()
    before = parameters(scene)
    health = step(config, scene, optimiser, Progress())
    assert not torch.equal(parameters(scene), before)
    assert 0 < health.opacity < 1 and health.gradient_norm > 0 and health.finite


def test_the_views_of_a_group_share_their_noise_time():
    class InPairs(CountingOracle):
        view_group = 2

        def predict_noise(self, noised, t, embeddings, condition):
            self.times, self.views = t, condition.cameras
            return super().predict_noise(noised, t, embeddings, condition)

    config, scene, optimiser = make(camera__views=4)
    prior = InPairs()
    step(config, scene, optimiser, Progress(), prior)
    times = prior.times[:4]
    assert times[0] == times[1] != times[2] == times[3]
    opposite = prior.views.azimuth_rad[1] - prior.views.azimuth_rad[0]
    assert float(opposite.abs()) == pytest.approx(math.pi, abs=1e-5)
    assert prior.views.elevation_rad[0] == prior.views.elevation_rad[1] != prior.views.elevation_rad[2]


def test_a_step_depends_on_seed_and_number_alone():
    torch.manual_seed(1)
    config, scene, optimiser = make()
    step(config, scene, optimiser, Progress(3))
    torch.manual_seed(2)
    others = [make(), make(), make(seed=1)]
    for (other_config, other, other_optimiser), number in zip(others, (3, 4, 3), strict=True):
        step(other_config, other, other_optimiser, Progress(number))
    same, later, seeded = (torch.equal(parameters(scene), parameters(other)) for _, other, _ in others)
    assert same and not later and not seeded


def test_the_rate_falls_over_the_run_and_with_the_guard():
    config, scene, optimiser = make(optim__lr_grid=0.1, optim__lr_decoder=0.01, optim__lr_final=0.25)
    for number, guard in ((0, StepGuard()), (10, StepGuard()), (10, StepGuard(rate=0.5))):
        step(config, scene, optimiser, Progress(number, guard))
        factor = 0.25 ** (number / 20) * guard.rate
        rates = [group["lr"] for group in optimiser.param_groups]
        assert rates == pytest.approx([0.1 * factor, 0.01 * factor])


def test_a_step_without_finite_gradients_changes_nothing_that_is_learned():
    config, scene, optimiser = make()
    step(config, scene, optimiser, Progress(1))
    before = {name: value.clone() for name, value in scene_tensors(scene, optimiser).items()}
    health = step(config, scene, optimiser, Progress(2), NaNs())
    assert not health.finite and 0 < health.opacity < 1
    assert all(torch.equal(value, before[name]) for name, value in scene_tensors(scene, optimiser).items())


def test_the_prior_is_asked_once_a_step_for_all_prompts_of_all_views(monkeypatch):
    config, scene, optimiser = make(camera__views=3)
    prior, asked = CountingOracle(), []
    answer = prior.predict_noise

    def listen(noised, t, embeddings, condition):
        asked.append((tuple(noised.shape), len(embeddings), len(condition.cameras), t))
        return answer(noised, t, embeddings, condition)

    monkeypatch.setattr(prior, "predict_noise", listen)
    step(config, scene, optimiser, Progress(), prior)
    ((shape, n_prompts, n_views, t),) = asked
    assert shape == (6, 3, 16, 16) and n_prompts == n_views == 6
    assert torch.equal(t[:3], t[3:])
    assert config.guidance.t_min <= float(t.min()) <= float(t.max()) <= config.guidance.t_max_start


def test_inner_steps_go_on_towards_one_answer_without_asking_again():
    distances = []
    for inner in (1, 4):
        config, scene, optimiser = make(camera__views=3, optim__inner_steps=inner)
        prior = CountingOracle()
        step(config, scene, optimiser, Progress(), prior)
        assert prior.steps == 1
        assert {int(state["step"]) for state in optimiser.state.values()} == {inner}
        rendering, told = render_views(scene, draw_views(config, 0, 1, scene.device))
        assert told.together == len(told.cameras) == config.camera.views  # views of one object
        distances.append(rendering.color.detach())
    config, scene, _ = make(camera__views=3)
    before = render_views(scene, draw_views(config, 0, 1, scene.device))[0].color.detach()
    moved = [float((after - before).norm()) for after in distances]
    assert moved[1] > 1.5 * moved[0] > 0


def test_an_answer_that_is_kept_draws_its_views_to_its_end():
    x, end, strength = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([0.3, 0.5]).view(2, 1, 1, 1)
    answer = Answer(x, strength * (x - end), strength)
    elsewhere = torch.randn(2, 3, 4, 4)
    assert torch.allclose(answer.gradient_at(elsewhere), strength * (elsewhere - end), atol=1e-6)


def test_inner_steps_end_where_the_gradient_is_not_finite():
    config, scene, optimiser = make(optim__inner_steps=3)
    before = parameters(scene)
    assert not step(config, scene, optimiser, Progress(1), NaNs()).finite
    assert torch.equal(parameters(scene), before)


def test_the_bridge_changes_its_question_in_stage_two(monkeypatch):
    config, scene, optimiser = make(guidance__bridge_from=0.5)
    prior, asked = CountingOracle(), []
    answer = prior.predict_noise

    def listen(noised, t, embeddings, condition):
        asked.append(embeddings.tokens[-1, 0])
        return answer(noised, t, embeddings, condition)

    monkeypatch.setattr(prior, "predict_noise", listen)
    for number in (9, 10):
        step(config, scene, optimiser, Progress(number), prior)
    null, source = prior.encode_prompts(["", f"{config.prompt}, {config.guidance.source_words}"]).tokens[:, 0]
    assert torch.equal(asked[0], null) and torch.equal(asked[1], source)


def test_the_occupancy_grid_is_looked_at_again_every_few_steps(monkeypatch):
    config, scene, optimiser = make(occupancy__every=4)
    counts = []
    for number in range(9):
        step(config, scene, optimiser, Progress(number))
        counts.append(int(scene.occupancy.n_updates))
    assert counts == [1, 1, 1, 1, 2, 2, 2, 2, 3]
    assert scene.occupancy.occupied_fraction < 1


def test_an_update_of_the_occupancy_depends_on_seed_and_step_alone():
    config, one, _ = make()
    _, two, _ = make()
    _, later, _ = make()
    for scene, number in ((one, 8), (two, 8), (later, 16)):
        update_occupancy(scene, config, number)
    assert torch.equal(one.occupancy.ema, two.occupancy.ema)
    assert not torch.equal(one.occupancy.ema, later.occupancy.ema)


@pytest.mark.parametrize("shading", ["albedo", "lambertian", "textureless", "mixed"])
@pytest.mark.parametrize("background", ["random", "white", "grey", "learned"])
def test_every_look_gives_gradients(shading, background):
    config, scene, optimiser = make(render__shading=shading, render__background=background)
    assert step(config, scene, optimiser, Progress(1)).finite
    learned = [p.grad is not None and bool(p.grad.any()) for p in scene.environment.parameters()]
    assert any(learned) == (background == "learned")


def test_what_the_prior_is_told_is_what_is_behind_the_object():
    config, scene, _ = make(render__background="random", field__blob_scale=0, render__size=32)
    scene.occupancy.occupied.zero_()
    rendering, condition = render_views(scene, draw_views(config, 5, 1, scene.device))
    seen = rendering.color.mean((1, 2))
    assert torch.allclose(seen, condition.background, atol=1e-5)
    assert len(condition.cameras) == 2 and (seen[0] - seen[1]).abs().max() > 0.01


def test_a_learned_background_is_told_by_its_mean():
    config, scene, _ = make(render__background="learned")
    _, condition = render_views(scene, draw_views(config, 0, 1, scene.device))
    seen, told = backgrounds(scene.environment, condition.cameras, config.render.size, scene.backend, None)
    assert seen.shape == (2, 16, 16, 3) and told.shape == (2, 3)
    assert torch.allclose(seen.mean((1, 2)), told) and not told.requires_grad and seen.requires_grad
    assert torch.equal(condition.background, told)


def even(opacity, thickness=0.0):
    """Two views of 4 x 4 pixels that all have this opacity and this thickness."""
    of_pixels = torch.full((2, 4, 4), opacity, requires_grad=True)
    return Rendering(
        color=torch.zeros(2, 4, 4, 3),
        opacity=of_pixels,
        depth=torch.zeros(2, 4, 4),
        normals=None,
        thickness=torch.full((2, 4, 4), thickness),
        n_samples=0,
    )


def test_sparsity_entropy_and_thickness_are_summed_over_a_views_pixels():
    config, scene, _ = make(optim__weight_opacity=2.0, optim__weight_entropy=3.0, optim__weight_thickness=5.0)
    for opacity, entropy in ((0.5, math.log(2)), (0.25, -0.25 * math.log(0.25) - 0.75 * math.log(0.75))):
        for number in (0, 10, 15, 20):
            ramp = min(max(0.0, 2 * number / 19 - 1), 1.0)
            expected = 64 * 64 * (2.0 * opacity + ramp * (3.0 * entropy + 5.0 * 0.1))
            total = regularisers(scene, even(opacity, thickness=0.1), config, number)
            assert float(total.detach()) == pytest.approx(expected, rel=1e-5)


def test_the_entropy_pushes_to_the_nearer_end_and_stays_finite_there():
    config, scene, _ = make(optim__weight_opacity=0.0, optim__weight_entropy=1.0)
    slopes = []
    for value in (0.0, 0.2, 0.8, 1.0):
        rendering = even(value)
        regularisers(scene, rendering, config, 20).backward()
        slopes.append(float(rendering.opacity.grad.sum()))
    assert slopes[1] > 0 > slopes[2] and all(math.isfinite(slope) for slope in slopes)


def test_roughness_is_zero_for_an_even_field_and_can_be_learned_away():
    config, scene, _ = make(field__blob_scale=0, optim__weight_smooth=1.0)
    with torch.no_grad():
        scene.field.table.zero_()
    assert float(roughness(scene, config, 0).detach()) == 0.0
    with torch.no_grad():
        scene.field.table.normal_()
    rough = roughness(scene, config, 0)
    rough.backward()
    rough = float(rough.detach())
    assert rough > 1e-3 and bool(scene.field.table.grad.any())
    without = make(field__blob_scale=0)[0]
    more = regularisers(scene, even(0.5), config, 0) - regularisers(scene, even(0.5), without, 0)
    assert float(more.detach()) == pytest.approx(rough, rel=1e-3)


def test_a_preview_is_four_views_in_a_row():
    config, scene, _ = make()
    image = preview_image(scene, config)
    assert image.shape == (128, 512, 3) and image.min() >= 0 and image.max() <= 1 + 1e-6
    middle, corner = image[64, 64::128], image[0, 0::128]
    assert np.allclose(corner, 1.0, atol=1e-2) and (middle < 0.9).all()


@pytest.fixture
def log(tmp_path):
    with EventLog(tmp_path / "events.jsonl") as opened:
        yield opened


def test_a_good_step_is_one_step_further(tmp_path, log):
    config, scene, optimiser = make()
    progress = after_step(RunDirectory(tmp_path), scene, optimiser, config, Progress(4), GOOD, log)
    assert progress == Progress(5)


def test_a_bad_step_is_one_step_further_and_counted(tmp_path, log):
    config, scene, optimiser = make()
    progress = after_step(RunDirectory(tmp_path), scene, optimiser, config, Progress(4), BAD, log)
    assert progress == Progress(5, StepGuard(in_a_row=1, skipped=1))
    assert steps_of(tmp_path, "skipped") == [5]


@pytest.mark.parametrize("saved", [True, False])
def test_the_last_good_state_is_restored(tmp_path, log, saved):
    config, scene, optimiser = make()
    run = RunDirectory(tmp_path)
    if saved:
        for number in range(3):
            step(config, scene, optimiser, Progress(number))
        save(run, scene, optimiser, config, Progress(3))
    good = {name: value.clone() for name, value in scene_tensors(scene, optimiser).items()}
    for number in range(3, 5):
        step(config, scene, optimiser, Progress(number))
    worst = Progress(5, StepGuard(in_a_row=SKIPS_IN_A_ROW - 1, skipped=SKIPS_IN_A_ROW - 1))
    progress = after_step(run, scene, optimiser, config, worst, BAD, log)
    assert progress == Progress(3 if saved else 0, StepGuard(0, SKIPS_IN_A_ROW, 1, 0.5))
    now = scene_tensors(scene, optimiser)
    assert now.keys() == good.keys() and all(torch.equal(value, good[name]) for name, value in now.items())
    restored = read_events(tmp_path / "events.jsonl")[-1]
    assert (restored["event"], restored["step"], restored["rate"]) == ("restored", progress.step, 0.5)


def test_bad_steps_do_not_take_the_place_of_the_last_good_checkpoint(tmp_path, log):
    """With a checkpoint due at every step, none is written while bad steps follow each other."""
    config, scene, _ = make(steps=3, checkpoint_every=1)

    class ThenNaNs(CountingOracle):
        def at_step(self, step, noised):
            return torch.full_like(noised, math.nan) if step == 2 else None

    prior = ThenNaNs()
    words = encode_words(prior, config.prompt, config.guidance)
    run = RunDirectory(tmp_path)
    run.previews.mkdir()
    optimise(run, config, scene, prior, words, log)
    assert steps_of(tmp_path, "checkpoint") == [1, 3]


def test_progress_is_reported_every_few_steps_and_at_the_end(tmp_path, log, monkeypatch):
    monkeypatch.setattr(optimize, "PROGRESS_EVERY", 4)
    config, scene, _ = make(steps=10, checkpoint_every=5, preview_every=6)
    prior = CountingOracle()
    words = encode_words(prior, config.prompt, config.guidance)
    run = RunDirectory(tmp_path)
    run.previews.mkdir()
    optimise(run, config, scene, prior, words, log)
    assert steps_of(tmp_path, "progress") == [4, 8, 10]
    assert steps_of(tmp_path, "checkpoint") == [5, 10]
    assert [number for number, _ in run.list_previews()] == steps_of(tmp_path, "preview") == [6, 10]
    assert prior.steps == 10


def test_the_field_comes_nearer_to_the_truth(tmp_path, log):
    config, scene, optimiser = make(
        steps=60, guidance__method="sds", guidance__scale=1.0, field__finest_resolution=32, render__background="white"
    )
    prior = CountingOracle()

    def error():
        rendering, condition = render_views(scene, draw_views(config, 0, 1, scene.device))
        truth = prior.render(condition)[[thing.noun for thing in prior.objects].index("chair")]
        return float((rendering.color.detach().permute(0, 3, 1, 2) - truth).abs().mean())

    before = error()
    draws = Draws(config, encode_words(prior, config.prompt, config.guidance), prior.view_group, CPU)
    for number in range(config.steps):
        training_step(scene, optimiser, prior, draws, config, Progress(number))
    assert error() < 0.8 * before


def test_signals_are_noted_once_and_the_second_stops_at_once():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(KeyboardInterrupt), stop_signals() as stopped:
        assert not stopped.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.wait(1)
        os.kill(os.getpid(), signal.SIGINT)
        stopped.wait(1)
    assert {number: signal.getsignal(number) for number in before} == before


def test_in_another_thread_signals_are_left_alone():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with stop_signals() as stopped:
            seen.append((stopped.is_set(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
