"""Training views from CUDA graphs: when a graph is used, that too little room is noticed, and that nothing changes."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from tiny_run import CountingOracle, tiny_config

from nerf_bridge import graphed_render
from nerf_bridge.draws import Draws, draw_views
from nerf_bridge.graphed_render import (
    LEAST_ROOM,
    MOST_GRAPHS,
    MOST_ROOM,
    MOST_TOGETHER,
    SPARE,
    GraphedRender,
    Look,
    make_room_for,
    room_for,
    room_to_replay,
)
from nerf_bridge.guidance import encode_words
from nerf_bridge.ops.backend import resolve_backend
from nerf_bridge.optimize import (
    gradients,
    preview_image,
    render_views,
    training_step,
    update_occupancy,
    view_renderer,
)
from nerf_bridge.prior.protocol import ViewCondition
from nerf_bridge.run.state import Progress, build_optimiser
from nerf_bridge.scene.cameras import packed, sample_cameras, unpacked
from nerf_bridge.scene.scene import build_scene

CPU = torch.device("cpu")


def make(where=CPU, backend="auto", **changes):
    config = tiny_config(**{"steps": 20, **changes})
    scene = build_scene(config, resolve_backend(backend, where), where)
    return config, scene, build_optimiser(scene, config)


def test_the_room_has_something_to_spare_and_few_values():
    counts = range(1, 300_000, 371)
    rooms = [room_for(count) for count in counts]
    assert all(
        SPARE * count <= room <= max(2 * SPARE * count, LEAST_ROOM) for count, room in zip(counts, rooms, strict=True)
    )
    assert rooms == sorted(rooms) and len(set(rooms)) < 15
    assert room_for(0) == LEAST_ROOM
    assert room_for(int(MOST_ROOM / SPARE)) == MOST_ROOM and room_for(MOST_ROOM) is None


@pytest.mark.parametrize(
    ("wanted", "before", "there", "expected"),
    [
        (None, None, [64], None),  # too many samples
        (64, None, [], None),  # the first count
        (64, 96, [], 96),  # about the same twice
        (96, 64, [], 96),
        (64, 128, [], None),  # it still changes
        (128, 64, [], None),
        (64, 64, [], 64),  # two in a row
        (64, 96, [128, 96, 192], 96),  # one that is there and not too large
        (64, 96, [32, 192], 96),  # none that is there fits
        (64, 64, [256], 64),
    ],
)
def test_which_graph_is_replayed(wanted, before, there, expected):
    assert room_to_replay(wanted, before, there) == expected


def test_cameras_pack_into_one_tensor():
    cameras = sample_cameras(tiny_config().camera, torch.Generator().manual_seed(0))
    for field in dataclasses.fields(cameras):
        assert torch.equal(getattr(unpacked(packed(cameras)), field.name), getattr(cameras, field.name))


class Pretended(GraphedRender):
    """Replays by rendering with the capacity that the graph would have; on any device."""

    def __init__(self, scene):
        super().__init__(scene, enabled=True)
        self.replays, self.captures = 0, []

    def _capture(self, look, room, inputs):
        make_room_for(self._graphs, room)
        views = graphed_render._Views(self._scene, look, room)
        self.captures.append((look, room))

        def replay(*given):
            self.replays += 1
            return views(*given)

        self._graphs[look, room] = replay
        return True


@pytest.mark.parametrize("shading", ["albedo", "lambertian", "mixed"])
@pytest.mark.parametrize("background", ["random", "learned"])
def test_steps_with_graphs_are_the_plain_ones(shading, background):
    changes = {"render__shading": shading, "render__background": background, "occupancy__every": 4}
    ends = []
    for graphed in (False, True):
        config, scene, optimiser = make(**changes)
        prior = CountingOracle()
        draws = Draws(config, encode_words(prior, config.prompt, config.guidance), prior.view_group, scene.device)
        views = Pretended(scene) if graphed else None
        for number in range(16):
            training_step(scene, optimiser, prior, draws, config, Progress(number), views)
        ends.append(torch.cat([p.detach().flatten() for p in optimiser.parameters]))
    assert views.replays >= (6 if shading != "mixed" else 1) and len(views.captures) <= 3
    assert torch.allclose(ends[0], ends[1], atol=1e-5)


def test_views_are_counted_after_each_change_of_the_occupancy():
    """One step after each change is plain, and before the second change there is nothing to compare a count with."""
    config, scene, _ = make()
    views = Pretended(scene)
    seen = []
    for number in range(12):
        if number % 4 == 0:
            views.forget_counts()
        before = views.replays
        render_views(scene, draw_views(config, number, 1, scene.device), views=views)
        seen.append(views.replays > before)
    assert seen == [False] * 5 + [True] * 3 + [False] + [True] * 3


def test_too_little_room_is_noticed_and_the_step_done_again(monkeypatch):
    ends = []
    for graphed in (False, True):
        config, scene, optimiser = make()
        prior = CountingOracle()
        draws = Draws(config, encode_words(prior, config.prompt, config.guidance), prior.view_group, scene.device)
        update_occupancy(scene, config, 0)
        views = Pretended(scene) if graphed else GraphedRender(scene, enabled=False)
        if graphed:
            monkeypatch.setattr(graphed_render, "LEAST_ROOM", 1)
            rendering, _ = render_views(scene, draw_views(config, 1, 1, scene.device), views=views)
            views.forget_counts()
            (look,) = views._before
            views._counted[look] = views._before[look] = rendering.n_samples // 4
            views._before[look] = room_for(views._counted[look])
            found = gradients(scene, optimiser, prior, draws, config, Progress(1), views)
            assert found.seen()[1]
            assert views.replays == 1
        health = training_step(scene, optimiser, prior, draws, config, Progress(1), views)
        ends.append((health, torch.cat([p.detach().flatten() for p in optimiser.parameters])))
    assert views.replays == 2 and prior.steps == 3
    assert ends[0][0] == ends[1][0] and torch.equal(ends[0][1], ends[1][1])
    assert views._counted[look] == rendering.n_samples


def test_the_number_of_graphs_is_bounded():
    config, scene, _ = make()
    views = Pretended(scene)
    for size in range(16, 16 + 4 * (MOST_GRAPHS + 2), 4):
        sized = config.model_copy(update={"render": config.render.model_copy(update={"size": size})})
        for _ in range(2):
            views.forget_counts()
            for number in range(3):
                render_views(scene, draw_views(sized, number, 1, scene.device), views=views)
    assert len(views.captures) == MOST_GRAPHS + 2 and len(views._graphs) == MOST_GRAPHS


def test_the_room_of_all_graphs_together_is_bounded():
    look = Look(4, 64, "albedo", False)
    graphs = {}
    for room in (MOST_ROOM, MOST_ROOM // 2, MOST_ROOM // 2, MOST_ROOM // 4, MOST_ROOM):
        make_room_for(graphs, room)
        graphs[dataclasses.replace(look, views=len(graphs) + room), room] = "a graph"
        assert sum(room for _, room in graphs) <= MOST_TOGETHER
    assert [room for _, room in graphs] == [MOST_ROOM // 2, MOST_ROOM // 4, MOST_ROOM]


def test_giving_up_says_whether_graphs_held_memory(caplog):
    config, scene, _ = make()
    assert not GraphedRender(scene, enabled=False).give_up("full") and not Pretended(scene).give_up("full")
    views = Pretended(scene)
    for number in range(3):
        views.forget_counts()
        render_views(scene, draw_views(config, number, 1, scene.device), views=views)
        render_views(scene, draw_views(config, number, 1, scene.device), views=views)
    assert views._graphs and views.give_up("full") and not views._graphs
    assert not views.give_up("full")
    assert caplog.text.count("without CUDA graphs, slower: full") == 2


def test_a_capture_that_fails_is_told_once_and_the_views_come_all_the_same(monkeypatch, caplog):
    def refuse(*_, **__):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(graphed_render, "record_differentiable", refuse)
    config, scene, _ = make()
    views = GraphedRender(scene, enabled=True)
    with caplog.at_level(logging.WARNING, graphed_render.logger.name):
        for number in range(12):
            if number % 4 == 0:
                views.forget_counts()
            rendering, _ = render_views(scene, draw_views(config, number, 1, scene.device), views=views)
            assert rendering.overflow is None and rendering.n_samples > 0
    (record,) = caplog.records
    assert "operation not permitted when stream is capturing" in record.getMessage()


def test_on_a_cpu_no_graph_is_tried():
    _, scene, _ = make()
    assert not view_renderer(scene, 0)._enabled


class OracleForGpu(CountingOracle):
    """The oracle works on the CPU, wherever it is asked."""

    def predict_noise(self, noised, t, embeddings, condition):
        there = ViewCondition(condition.cameras.to("cpu"), condition.background.cpu())
        return super().predict_noise(noised.cpu(), t.cpu(), embeddings, there).to(noised.device)


def trained_on_gpu(views_of, n_steps, **changes):
    """A picture after some steps on a GPU, the figures of the steps, and what rendered the views."""
    device = torch.device("cuda")
    changes = {"device": "cuda", "occupancy__every": 4, "field__n_features": 4, **changes}
    config, scene, optimiser = make(device, "cuda", **changes)
    prior = OracleForGpu()
    draws = Draws(config, encode_words(prior, config.prompt, config.guidance), prior.view_group, scene.device)
    views = views_of(scene)
    figures = []
    for number in range(n_steps):
        health = training_step(scene, optimiser, prior, draws, config, Progress(number), views)
        figures.append((health.opacity, health.gradient_norm))
    return torch.as_tensor(preview_image(scene, config)), torch.tensor(figures), views


@pytest.mark.cuda
@pytest.mark.parametrize("shading", ["albedo", "lambertian"])
@pytest.mark.parametrize("background", ["random", "learned"])
def test_on_a_gpu_graphed_and_plain_training_agree(shading, background):
    changes = {"render__shading": shading, "render__background": background}
    plain, plain_figures, _ = trained_on_gpu(lambda scene: None, 12, **changes)
    graphed, graphed_figures, views = trained_on_gpu(lambda scene: view_renderer(scene, 0), 12, **changes)
    assert views._enabled and views._graphs  # it was captured
    # sums by atomics differ from run to run, and Adam makes whole steps of what is left of tiny gradients
    assert torch.allclose(graphed_figures, plain_figures, rtol=0.1, atol=5e-3)
    assert float((graphed - plain).abs().mean()) < 0.01


@pytest.mark.cuda
@pytest.mark.parametrize("background", ["random", "learned"])
def test_on_a_gpu_the_gradients_of_a_graph_are_the_plain_ones(background):
    changes = {"device": "cuda", "field__n_features": 4, "render__background": background}
    config, scene, optimiser = make(torch.device("cuda"), "cuda", **changes)
    parameters = [*scene.field.parameters(), *(scene.environment.parameters() if background == "learned" else ())]
    update_occupancy(scene, config, 0)
    views = view_renderer(scene, 0)
    found = {}
    for number in (1, 2, 3):
        for name, renderer in (("plain", None), ("graphed", views)):
            if name == "graphed" and number < 3:
                views.forget_counts()
            optimiser.zero_grad()
            rendering, told = render_views(scene, draw_views(config, number, 1, scene.device), views=renderer)
            assert not told.background.requires_grad
            (rendering.color.square().sum() + rendering.thickness.sum()).backward()
            pictures = [rendering.color.detach().clone(), told.background.clone()]
            found[name] = [*pictures, *(p.grad.clone() for p in parameters)]
            overflow = rendering.overflow
            del rendering  # as in the loop: what still holds the parameters' graph keeps a recording from being made
    assert views._graphs and overflow is not None and not bool(overflow)
    for plain, graphed in zip(found["plain"], found["graphed"], strict=True):
        assert float((plain - graphed).abs().max()) <= 2e-3 * float(plain.abs().max())


@pytest.mark.cuda
def test_on_a_gpu_a_replay_sees_the_field_and_the_occupancy_as_they_are():
    config, scene, _ = make(torch.device("cuda"), "cuda", device="cuda", field__n_features=4)
    views = view_renderer(scene, 0)
    for number in range(3):
        if number < 2:
            views.forget_counts()
        render_views(scene, draw_views(config, number, 1, scene.device), views=views)
    assert views._graphs
    with torch.no_grad():
        scene.field.table.normal_()
    expected, _ = render_views(scene, draw_views(config, 5, 1, scene.device))
    replayed, _ = render_views(scene, draw_views(config, 5, 1, scene.device), views=views)
    assert replayed.overflow is not None
    assert torch.allclose(replayed.color, expected.color, atol=2e-3)
    scene.occupancy.occupied.zero_()
    empty, condition = render_views(scene, draw_views(config, 6, 1, scene.device), views=views)
    assert torch.allclose(empty.color.mean((1, 2)), condition.background, atol=1e-5)
