"""Texture refinement as part of a run and of an export."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import trimesh
from tiny_run import STEPS, CountingOracle, Killed, outcome, shorten_turntable, tiny_config

from nerf_bridge import pipeline
from nerf_bridge.memory import ladder
from nerf_bridge.memory.ladder import PRESETS
from nerf_bridge.mesh.refine_texture import LEARNING_RATE

REFINE_STEPS = 3


@pytest.fixture(scope="module", autouse=True)
def _short_turntable():
    with pytest.MonkeyPatch.context() as patch:
        shorten_turntable(patch)
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without refinement."""
    return pipeline.generate(tiny_config(), tmp_path_factory.mktemp("runs") / "plain", CountingOracle())


@pytest.fixture(scope="module")
def refined(tmp_path_factory):
    """The same with it."""
    path = tmp_path_factory.mktemp("runs") / "refined"
    return pipeline.generate(tiny_config(mesh__refine_steps=REFINE_STEPS), path, CountingOracle())


def asset(path):
    mesh = trimesh.load(path, force="mesh", process=False)
    return mesh, np.asarray(mesh.visual.material.baseColorTexture.convert("RGB")).astype(int)


def test_the_texture_changes_and_the_mesh_does_not(plain, refined):
    (before, old), (after, new) = asset(plain.asset), asset(refined.asset)
    assert np.array_equal(before.vertices, after.vertices) and np.array_equal(before.faces, after.faces)
    assert np.array_equal(before.visual.uv, after.visual.uv)
    assert 0 < np.abs(old - new).max() <= 255 * LEARNING_RATE * REFINE_STEPS * 1.5 + 1


def test_the_prior_is_asked_once_a_step(tmp_path):
    oracle = CountingOracle()
    pipeline.generate(tiny_config(mesh__refine_steps=REFINE_STEPS), tmp_path / "run", oracle)
    assert oracle.steps == STEPS + REFINE_STEPS


def test_a_run_that_dies_in_the_refinement_does_it_again_the_same_way(refined, tmp_path):
    class Dies(CountingOracle):
        def at_step(self, step, noised):
            if step == STEPS + 2:
                raise Killed

    config = tiny_config(mesh__refine_steps=REFINE_STEPS)
    with pytest.raises(Killed):
        pipeline.generate(config, tmp_path / "run", Dies())
    oracle = CountingOracle()
    again = pipeline.generate(config, tmp_path / "run", oracle)
    assert oracle.steps == REFINE_STEPS
    assert outcome(again.path) == outcome(refined.path)


def test_an_export_refines_with_the_prior_of_the_run(plain, refined, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(pipeline, "load_prior", lambda name, *_: asked.append(name) or CountingOracle())
    out, _ = pipeline.export(plain.path, {"refine_steps": REFINE_STEPS}, tmp_path / "a.glb")
    assert asked == ["embedded"]
    assert np.array_equal(asset(out)[1], asset(refined.asset)[1])
    pipeline.export(plain.path, {}, tmp_path / "b.glb")
    assert asked == ["embedded"]


class Placed(CountingOracle):
    """Knows the rungs that it was placed on."""

    def __init__(self):
        super().__init__()
        self.placed = []

    def place(self, rung):
        self.placed.append(rung.name)


def test_an_export_refines_on_the_runs_rung_with_views_of_its_size(tmp_path, monkeypatch):
    """So it does the very steps that the run itself would have done; also where `memory` changed on the way.

    The oracle takes views of 16 pixels, to which only 8gb shrinks those of 32.
    """
    shrunk = [dataclasses.replace(preset, largest_view=16 if preset.name == "8gb" else None) for preset in PRESETS]
    monkeypatch.setattr(ladder, "PRESETS", shrunk)
    sparing = tiny_config(memory="8gb", render__size=32)
    at_once = tiny_config(memory="8gb", render__size=32, mesh__refine_steps=REFINE_STEPS)
    whole = pipeline.generate(at_once, tmp_path / "whole", CountingOracle())

    class Dies(CountingOracle):
        def at_step(self, step, noised):
            raise Killed

    with pytest.raises(Killed):
        pipeline.generate(tiny_config(memory="12gb", render__size=32), tmp_path / "run", Dies())
    run = pipeline.generate(sparing, tmp_path / "run", CountingOracle())
    monkeypatch.setattr(pipeline, "load_prior", lambda *_: oracle)
    oracle = Placed()
    out, _ = pipeline.export(run.path, {"refine_steps": REFINE_STEPS}, tmp_path / "a.glb")
    assert oracle.placed == ["recompute"]
    assert np.array_equal(asset(out)[1], asset(whole.asset)[1])


def test_an_export_goes_down_the_ladder_too(plain, tmp_path, monkeypatch, caplog):
    class Cramped(Placed):
        def place(self, rung):
            super().place(rung)
            if rung.name == "whole":
                raise torch.OutOfMemoryError("CUDA out of memory")

    oracle = Cramped()
    monkeypatch.setattr(pipeline, "load_prior", lambda *_: oracle)
    with caplog.at_level("WARNING", "nerf_bridge"):
        pipeline.export(plain.path, {"refine_steps": 1}, tmp_path / "a.glb")
    assert oracle.placed == ["whole", "views"]
    told = "out of memory (CUDA out of memory); the texture is refined with: one group of views at a time"
    assert told in caplog.text
