"""Memory that runs out at a step takes the run one rung down, and nothing else changes."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from tiny_run import STEPS, CountingOracle, Killed, outcome, shorten_turntable, steps_of, tiny_config

from nerf_bridge import optimize, pipeline
from nerf_bridge.draws import Draws
from nerf_bridge.errors import RunError
from nerf_bridge.graphed_render import GraphedRender
from nerf_bridge.guidance import encode_words
from nerf_bridge.memory import ladder
from nerf_bridge.memory.descent import OutOfMemory, attempt
from nerf_bridge.memory.ladder import PRESETS, RUNGS
from nerf_bridge.ops.backend import resolve_backend
from nerf_bridge.optimize import optimise, training_step
from nerf_bridge.run.checkpoint import load_checkpoint
from nerf_bridge.run.directory import RunDirectory, read_record
from nerf_bridge.run.events import EventLog, read_events
from nerf_bridge.run.state import Progress, build_optimiser, save, scene_tensors
from nerf_bridge.scene.occupancy import OccupancyGrid
from nerf_bridge.scene.scene import build_scene

CPU = torch.device("cpu")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class Full(CountingOracle):
    """Has no memory for some questions (by number, from 1), ends the process at others; knows its rungs.

    Attributes:
        placed: names of the rungs that it was placed on.
    """

    def __init__(self, lacks=(), ends=()):
        super().__init__()
        self.lacks, self.ends, self.placed = lacks, ends, []

    def place(self, rung):
        self.placed.append(rung.name)

    def at_step(self, step, noised):
        if step in self.ends:
            raise Killed
        if step in self.lacks:
            raise FULL


def make(**changes):
    config = tiny_config(**{"occupancy__every": 2, **changes})
    scene = build_scene(config, resolve_backend("auto", CPU), CPU)
    return config, scene, build_optimiser(scene, config)


def rungs_told(path):
    return [(e["step"], e["rung"]) for e in read_events(path / "events.jsonl") if e["event"] == "memory"]


def run_loop(path, prior, rung=0, checkpointed=True, **changes):
    """The loop alone in `path`; where it stands at the end, and every tensor of its state if that was kept."""
    path.mkdir(parents=True, exist_ok=True)
    config, scene, _ = make(**changes)
    (path / "previews").mkdir(exist_ok=True)
    words = encode_words(prior, config.prompt, config.guidance)
    with EventLog(path / "events.jsonl") as log:
        progress = optimise(RunDirectory(path), config, scene, prior, words, log, rung)
    return progress, load_checkpoint(path / "checkpoint")[0] if checkpointed else None


def by_hand(rungs, **changes):
    """The tensors after steps on the given rungs, one after the other, with no loop and no checkpoint."""
    config, scene, optimiser = make(**changes)
    prior = CountingOracle()
    draws = Draws(config, encode_words(prior, config.prompt, config.guidance), prior.view_group, scene.device)
    for step, rung in enumerate(rungs):
        training_step(scene, optimiser, prior, draws, config, Progress(step, rung=rung))
    return scene_tensors(scene, optimiser)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("at", [1, 3, 4, 6])
def test_the_step_is_done_again_one_rung_down(tmp_path, at):
    """Also at the first step, and at steps that begin with a look at the occupancy, which must not count twice."""
    prior = Full(lacks={at})
    progress, tensors = run_loop(tmp_path, prior)
    assert progress == Progress(STEPS, rung=1)
    assert rungs_told(tmp_path) == [(at - 1, RUNGS[1].name)]
    assert prior.placed == [RUNGS[0].name, RUNGS[1].name]
    assert same(tensors, by_hand([0] * (at - 1) + [1] * (STEPS - at + 1)))


def test_several_rungs_at_one_step_and_at_later_ones(tmp_path, caplog):
    """Question 3 is step 2 on rung 0, question 4 on rung 1; on lower rungs a step asks twice, for one view each."""
    prior = Full(lacks={3, 4, 10})
    with caplog.at_level("WARNING", "nerf_bridge"):
        progress, tensors = run_loop(tmp_path, prior)
    assert progress.rung == 3
    assert rungs_told(tmp_path) == [(2, "views"), (2, "recompute"), (4, "prompts")]
    assert same(tensors, by_hand([0, 0, 2, 2, 3, 3]))
    assert (
        f"out of memory at step 4 (CUDA out of memory. Tried to allocate 2.00 GiB); from here on: {RUNGS[3].does}"
        in (caplog.text)
    )


def test_the_rung_is_in_the_checkpoint_at_once_and_a_killed_run_goes_on_there(tmp_path):
    """Out of memory in step 3, before any checkpoint of the new rung was due; killed in the same step."""
    changes = {"checkpoint_every": 100}
    with pytest.raises(Killed):
        run_loop(tmp_path / "run", Full(lacks={4}, ends={6}), **changes)
    state = load_checkpoint(tmp_path / "run" / "checkpoint")[1]
    assert (state["step"], state["rung"]) == (3, 1)
    prior = Full()
    progress, tensors = run_loop(tmp_path / "run", prior, **changes)
    assert progress.rung == 1 and prior.placed == [RUNGS[1].name]
    assert steps_of(tmp_path / "run", "resumed") == [3]
    assert same(tensors, run_loop(tmp_path / "unbroken", Full(lacks={4}), **changes)[1])


def test_a_run_that_resumes_never_climbs_and_may_start_lower(tmp_path):
    config, scene, optimiser = make(checkpoint_every=100)
    save(RunDirectory(tmp_path), scene, optimiser, config, Progress(STEPS - 1, rung=2))
    assert run_loop(tmp_path, Full(), rung=1, checkpoint_every=100)[0].rung == 2
    save(RunDirectory(tmp_path), scene, optimiser, config, Progress(STEPS - 1, rung=2))
    assert run_loop(tmp_path, Full(), rung=4, checkpoint_every=100)[0].rung == 4


def test_a_checkpoint_from_before_the_ladder_is_on_the_first_rung(tmp_path):
    from nerf_bridge.run.checkpoint import save_checkpoint
    from nerf_bridge.run.state import restore

    config, scene, optimiser = make()
    save(RunDirectory(tmp_path), scene, optimiser, config, Progress(3, rung=2))
    tensors, state = load_checkpoint(tmp_path / "checkpoint")
    del state["rung"]
    save_checkpoint(tmp_path / "checkpoint", tensors, state)
    assert restore(RunDirectory(tmp_path), scene, optimiser) == Progress(3)


def test_after_memory_ran_out_nothing_of_the_step_is_held():
    _, scene, optimiser = make()
    before = {name: value.clone() for name, value in scene_tensors(scene, optimiser).items()}

    def step():
        scene.occupancy.ema += 1
        scene.occupancy.n_updates += 1
        scene.field.table.grad = torch.ones_like(scene.field.table)
        raise FULL

    assert attempt(step, scene, optimiser, refreshes=True) == OutOfMemory(str(FULL))
    assert same(before, scene_tensors(scene, optimiser)) and scene.field.table.grad is None


class Cramped(Full):
    """Has no memory to be placed on some rungs (by name)."""

    def __init__(self, too_large, lacks=()):
        super().__init__(lacks)
        self.too_large = too_large

    def place(self, rung):
        super().place(rung)
        if rung.name in self.too_large:
            raise FULL


def test_the_first_placing_goes_down_until_there_is_room(tmp_path, caplog):
    prior = Cramped({"whole", "views"})
    with caplog.at_level("WARNING", "nerf_bridge"):
        progress, tensors = run_loop(tmp_path, prior)
    assert progress == Progress(STEPS, rung=2) and prior.placed == ["whole", "views", "recompute"]
    assert rungs_told(tmp_path) == [(0, "views"), (0, "recompute")]
    assert caplog.text.count("out of memory at step 0 (CUDA out of memory. Tried to allocate 2.00 GiB)") == 2
    assert same(tensors, by_hand([2] * STEPS))


def test_the_rung_of_the_first_placing_is_kept_before_the_first_step(tmp_path):
    with pytest.raises(Killed):
        run_loop(tmp_path, type("Dies", (Cramped,), {"at_step": lambda *_: (_ for _ in ()).throw(Killed)})({"whole"}))
    state = load_checkpoint(tmp_path / "checkpoint")[1]
    assert (state["step"], state["rung"]) == (0, 1)


def test_a_step_down_whose_placing_finds_no_room_goes_further(tmp_path):
    prior = Cramped({"views"}, lacks={3})
    progress, tensors = run_loop(tmp_path, prior)
    assert progress.rung == 2 and prior.placed == ["whole", "views", "recompute"]
    assert rungs_told(tmp_path) == [(2, "views"), (2, "recompute")]
    assert same(tensors, by_hand([0, 0, 2, 2, 2, 2]))


def test_where_nothing_can_be_placed_the_run_ends_with_what_helps(tmp_path):
    with pytest.raises(RunError, match=r"below the last rung .* go on with a smaller --memory"):
        run_loop(tmp_path, Cramped({rung.name for rung in RUNGS}))


def short_of_memory_for_pictures(monkeypatch, fails):
    """Previews find no memory as often as `fails` says, one after the other."""
    real, left = optimize.preview_image, [fails]

    def draw(*arguments):
        left[0] -= 1
        if left[0] >= 0:
            raise FULL
        return real(*arguments)

    monkeypatch.setattr(optimize, "preview_image", draw)


def test_a_picture_without_memory_takes_the_run_one_rung_down(tmp_path, monkeypatch):
    short_of_memory_for_pictures(monkeypatch, 1)
    progress, tensors = run_loop(tmp_path, Full())
    assert progress.rung == 1 and rungs_told(tmp_path) == [(3, "views")]
    assert steps_of(tmp_path, "preview") == [3, STEPS] and len(list((tmp_path / "previews").iterdir())) == 2
    assert same(tensors, by_hand([0, 0, 0, 1, 1, 1]))


def test_a_picture_gives_the_views_graphs_up_first(tmp_path, monkeypatch):
    monkeypatch.setattr(optimize, "view_renderer", lambda scene, rung: GraphsThat(scene, [True]))
    short_of_memory_for_pictures(monkeypatch, 1)
    assert run_loop(tmp_path, Full())[0].rung == 0
    assert steps_of(tmp_path, "preview") == [3, STEPS] and rungs_told(tmp_path) == []


@pytest.mark.parametrize(("rung", "ends"), [(4, 4), (5, 5), (0, 2)])
def test_without_memory_for_any_picture_the_run_goes_on_without(tmp_path, monkeypatch, caplog, rung, ends):
    """A picture costs one rung at most, and is never worth the last one, which makes another result."""
    short_of_memory_for_pictures(monkeypatch, 100)
    with caplog.at_level("WARNING", "nerf_bridge"):
        progress, _ = run_loop(tmp_path, AnySize(), rung)
    assert progress == Progress(STEPS, rung=ends) and steps_of(tmp_path, "preview") == []
    assert caplog.text.count("no preview picture of it") == 2


def test_a_whole_run_without_memory_for_placing_and_pictures_makes_its_asset(tmp_path, monkeypatch):
    shorten_turntable(monkeypatch)
    short_of_memory_for_pictures(monkeypatch, 100)
    run = pipeline.generate(tiny_config(), tmp_path / "run", Cramped({"whole"}))
    record = read_record(run)
    assert record["state"] == "done" and record["memory"]["rung"] == "prompts"
    assert run.asset.is_file() and run.report.is_file()


def test_other_errors_go_through():
    _, scene, optimiser = make()
    with pytest.raises(ZeroDivisionError):
        attempt(lambda: 1 // 0, scene, optimiser, refreshes=False)


def test_the_occupancy_is_copied_only_at_steps_that_change_it(tmp_path, monkeypatch):
    copied = []
    real = OccupancyGrid.state_dict
    monkeypatch.setattr(optimize, "save", lambda *_: None)  # which copies too
    monkeypatch.setattr(OccupancyGrid, "state_dict", lambda grid, *a, **k: copied.append(1) or real(grid, *a, **k))
    run_loop(tmp_path, Full(), checkpointed=False, occupancy__every=4)
    assert len(copied) == 2, "steps 0 and 4 of 6"


class GraphsThat(GraphedRender):
    """Renders plainly, and says of each giving up whether it freed anything."""

    def __init__(self, scene, freed):
        super().__init__(scene, enabled=False)
        self.freed = iter(freed)

    def give_up(self, reason):
        return next(self.freed)


def test_where_graphs_held_memory_the_same_rung_is_tried_once_more(tmp_path, monkeypatch):
    """Question 3, step 2, fails with graphs; question 5, step 3, without any."""
    given_back = []
    monkeypatch.setattr(optimize, "view_renderer", lambda scene, rung: GraphsThat(scene, [True, False]))
    monkeypatch.setattr(optimize, "give_back_unused", lambda: given_back.append(1))
    prior = Full(lacks={3, 5})
    _, tensors = run_loop(tmp_path, prior)
    assert given_back == [1] and rungs_told(tmp_path) == [(3, "views")]
    assert prior.placed == ["whole", "views"]
    assert same(tensors, by_hand([0, 0, 0, 1, 1, 1]))


def test_no_moment_moves_before_there_is_room_for_all(monkeypatch):
    _, scene, optimiser = make()
    for parameter in (scene.field.table, scene.field.out_bias):
        parameter.grad = torch.ones_like(parameter)
    before, zeros = scene.field.table.detach().clone(), torch.zeros_like
    made = iter([zeros, zeros, zeros, None])

    def zeros_like(tensor):
        make_it = next(made)
        if make_it is None:
            raise FULL
        return make_it(tensor)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros_like", zeros_like)
        with pytest.raises(torch.OutOfMemoryError):
            optimiser.step()
    assert torch.equal(scene.field.table, before)
    optimiser.step()
    assert not torch.equal(scene.field.table, before)


def test_a_whole_run_tells_its_rung_and_comes_to_its_end(tmp_path, monkeypatch):
    shorten_turntable(monkeypatch)
    run = pipeline.generate(tiny_config(), tmp_path / "run", Full(lacks={2, 5}))
    record = read_record(run)
    assert record["state"] == "done" and record["memory"]["rung"] == "recompute"
    assert record["memory"]["needs_gib"]["step"] > 0
    assert [rung for _, rung in rungs_told(run.path)] == ["views", "recompute"]


def test_memory_may_be_set_otherwise_when_a_run_goes_on(tmp_path, monkeypatch):
    shorten_turntable(monkeypatch)
    with pytest.raises(Killed):
        pipeline.generate(tiny_config(), tmp_path / "run", Full(ends={5}))
    seen = []
    monkeypatch.setattr(
        optimize, "training_step", lambda *arguments: seen.append(arguments[5].rung) or training_step(*arguments)
    )
    pipeline.generate(tiny_config(memory="8gb"), tmp_path / "run", Full())
    assert set(seen) == {2}
    assert set(outcome(tmp_path / "run")) >= {"asset.glb", "config.yaml"}


class AnySize(Full):
    """Takes views of any size."""

    def encode_image(self, images):
        return super().encode_image(torch.nn.functional.interpolate(images, 16, mode="area"))


@pytest.fixture
def presets_of_12_pixels(monkeypatch):
    """Presets that bound the views do so to 12 pixels."""
    monkeypatch.setattr(ladder, "PRESETS", [replace(p, largest_view=12 if p.largest_view else None) for p in PRESETS])


def told_of_views(caplog):
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("views of")]


def sizes_of_views(monkeypatch):
    """Pixels along a side of the views of every step from now on."""
    seen = []
    monkeypatch.setattr(
        optimize, "training_step", lambda *arguments: seen.append(arguments[4].render.size) or training_step(*arguments)
    )
    return seen


@pytest.mark.usefixtures("presets_of_12_pixels")
def test_a_preset_that_shrinks_the_views_tells_it_and_records_it(tmp_path, monkeypatch, caplog):
    shorten_turntable(monkeypatch)
    seen = sizes_of_views(monkeypatch)
    caplog.set_level("INFO", "nerf_bridge")
    run = pipeline.generate(tiny_config(memory="8gb"), tmp_path / "small", AnySize())
    assert set(seen) == {12} and told_of_views(caplog) == ["views of 16 pixels become 12 (memory 8gb)"]
    assert read_record(run)["memory"]["view_size"] == 12 and read_record(run)["memory"]["setting"] == "8gb"
    caplog.clear()
    run = pipeline.generate(tiny_config(memory="80gb"), tmp_path / "large", AnySize())
    assert read_record(run)["memory"]["view_size"] == 16 and told_of_views(caplog) == []


@pytest.mark.usefixtures("presets_of_12_pixels")
def test_views_that_change_their_size_when_a_run_goes_on_are_told(tmp_path, monkeypatch, caplog):
    """Begun with `auto`, which never shrinks; on rung 2, that of 8gb, a step asks twice, once for each view."""
    shorten_turntable(monkeypatch)
    caplog.set_level("INFO", "nerf_bridge")
    smaller = "views of 16 pixels become 12"
    for memory, end, size, told in (
        ("auto", 4, 16, []),
        ("8gb", 6, 12, [f"{smaller} from here on (memory 8gb)"]),
        ("8gb", 1, 12, [f"{smaller} (memory 8gb)"]),
        ("auto", None, 16, ["views of 12 pixels become 16 from here on (memory auto)"]),
    ):
        caplog.clear()
        with monkeypatch.context() as patch, pytest.raises(Killed) if end else nullcontext():
            seen = sizes_of_views(patch)
            pipeline.generate(tiny_config(memory=memory), tmp_path / "run", AnySize(ends={end}))
        assert set(seen) == {size} and told_of_views(caplog) == told
