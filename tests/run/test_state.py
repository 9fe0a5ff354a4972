"""A checkpoint holds all that the next step depends on, and one of another kind is refused in one line."""

from dataclasses import replace

import pytest
import torch
from tiny_run import CountingOracle, tiny_config

from nerf_bridge.draws import Draws
from nerf_bridge.errors import UserError
from nerf_bridge.guidance import encode_words
from nerf_bridge.ops.backend import resolve_backend
from nerf_bridge.optimize import training_step
from nerf_bridge.run.checkpoint import load_checkpoint, save_checkpoint
from nerf_bridge.run.directory import RunDirectory
from nerf_bridge.run.health import EmptyGuard, StepGuard
from nerf_bridge.run.state import (
    Progress,
    build_optimiser,
    load_tensors,
    restore,
    restore_scene,
    save,
    scene_tensors,
)
from nerf_bridge.scene.scene import build_scene

CPU = torch.device("cpu")


class Work:
    """A scene with its optimiser, and steps on it."""

    def __init__(self, **changes):
        self.config = tiny_config(steps=20, **changes)
        self.scene = build_scene(self.config, resolve_backend("auto", CPU), CPU)
        self.optimiser = build_optimiser(self.scene, self.config)
        self.prior = CountingOracle()
        words = encode_words(self.prior, self.config.prompt, self.config.guidance)
        self.draws = Draws(self.config, words, self.prior.view_group, self.scene.device)

    def do(self, steps):
        for step in steps:
            training_step(self.scene, self.optimiser, self.prior, self.draws, self.config, Progress(step))
        return self

    def tensors(self):
        return {name: value.clone() for name, value in scene_tensors(self.scene, self.optimiser).items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_saved_comes_back_and_the_next_steps_are_the_same(tmp_path):
    run, work = RunDirectory(tmp_path), Work().do(range(9))
    progress = Progress(9, StepGuard(1, 3, 2, 0.25), EmptyGuard(since=7))
    save(run, work.scene, work.optimiser, work.config, progress)
    other = Work()
    assert not same(work.tensors(), other.tensors())
    assert restore(run, other.scene, other.optimiser) == progress
    assert same(work.tensors(), other.tensors())
    assert same(work.do(range(9, 12)).tensors(), other.do(range(9, 12)).tensors())


def test_moments_count(tmp_path):
    """With the scene alone put back, the next step is another one: the optimiser's moments belong to the state."""
    run, work = RunDirectory(tmp_path), Work().do(range(3))
    save(run, work.scene, work.optimiser, work.config, Progress(3))
    other = Work()
    assert restore_scene(run, other.scene).step
    assert torch.equal(other.scene.field.table, work.scene.field.table)
    work.do([3]), other.do([3])
    assert not torch.equal(other.scene.field.table, work.scene.field.table)


def test_tensors_go_back_into_a_scene_that_has_moved_on():
    work = Work()
    fresh = work.tensors()
    work.do(range(2))
    load_tensors(work.scene, work.optimiser, fresh)
    assert same(work.tensors(), fresh)
    assert same(work.do(range(2)).tensors(), Work().do(range(2)).tensors())


def test_the_learned_background_is_part_of_the_state():
    work = Work(render__background="learned")
    before = work.tensors()
    after = work.do([0]).tensors()
    names = [name for name in before if name.startswith("environment.")]
    assert names and any(not torch.equal(before[name], after[name]) for name in names)


def test_no_checkpoint_is_nothing_to_restore(tmp_path):
    work = Work()
    before = work.tensors()
    assert restore(RunDirectory(tmp_path), work.scene, work.optimiser) is None
    assert restore_scene(RunDirectory(tmp_path), work.scene) == Progress()
    assert same(work.tensors(), before)


def test_the_same_state_gives_the_same_bytes_and_names_its_settings(tmp_path):
    paths = [tmp_path / name for name in ("one", "two")]
    for path in paths:
        work = Work().do(range(2))
        save(RunDirectory(path), work.scene, work.optimiser, work.config, Progress(2))
    one, two = ({file.name: file.read_bytes() for file in (path / "checkpoint").iterdir()} for path in paths)
    assert one == two
    assert load_checkpoint(paths[0] / "checkpoint")[1]["config"] == Work().config.hash()


def without(name):
    return lambda tensors, state: tensors.pop(name)


def renamed(old, new):
    def change(tensors, state):
        tensors[new] = tensors.pop(old)

    return change


def of_another_size(tensors, state):
    tensors["field.table"] = torch.zeros(3, 2)


CHANGES = {
    "a tensor is missing": without("field.table"),
    "a tensor has another name": renamed("occupancy.ema", "occupancy.average"),
    "a tensor has another size": of_another_size,
}
STATE_CHANGES = {
    "a moment has no number": renamed("optimiser.0.step", "optimiser.first"),
    "no step": lambda tensors, state: state.pop("step"),
    "no guard": lambda tensors, state: state.pop("guard"),
    "a guard with another figure": lambda tensors, state: state["guard"].update(patience=3),
}


def changed_checkpoint(path, change):
    """A checkpoint that is whole (its hashes are right), but holds other things."""
    run, work = RunDirectory(path), Work().do([0])
    save(run, work.scene, work.optimiser, work.config, Progress(1))
    tensors, state = load_checkpoint(run.checkpoint)
    change(tensors, state)
    save_checkpoint(run.checkpoint, tensors, state)
    return run


def refused(call):
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and "delete the directory" in message
    return message


@pytest.mark.parametrize("name", [*CHANGES, *STATE_CHANGES])
def test_a_checkpoint_of_another_version_is_refused_in_one_line(tmp_path, name):
    run = changed_checkpoint(tmp_path, (CHANGES | STATE_CHANGES)[name])
    work = Work()
    assert str(run.checkpoint) in refused(lambda: restore(run, work.scene, work.optimiser))


@pytest.mark.parametrize("name", CHANGES)
def test_and_so_it_is_for_an_export(tmp_path, name):
    run = changed_checkpoint(tmp_path, CHANGES[name])
    assert str(run.checkpoint) in refused(lambda: restore_scene(run, Work().scene))


def test_progress_is_a_plain_record():
    assert replace(Progress(), step=3) == Progress(3, StepGuard(), EmptyGuard())
