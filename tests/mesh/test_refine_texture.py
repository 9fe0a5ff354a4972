"""Refinement of the texture: towards what the prior knows, the same every time, and nothing but the texture."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from oracle import OraclePrior
from oracle_objects import OBJECTS
from torch import Tensor

from nerf_bridge.config import GenerateConfig, build_config
from nerf_bridge.guidance import encode_words
from nerf_bridge.mesh.data import Mesh, UnwrappedMesh
from nerf_bridge.mesh.refine_texture import Guide, light_of, refine_texture, view_loss
from nerf_bridge.mesh.simplify import split_long_edges
from nerf_bridge.mesh.unwrap import unwrap
from nerf_bridge.ops.raster import rasterize_uv
from nerf_bridge.prior.protocol import PromptEmbeddings, ViewCondition
from nerf_bridge.scene.cameras import Cameras, turntable_cameras
from nerf_bridge.scene.mesh_render import ColoredMesh, Texture, shade_mesh
from nerf_bridge.scene.scene import build_scene

CHAIR = next(thing for thing in OBJECTS if thing.noun == "chair")
PIXELS, TEXELS = 32, 128


@pytest.fixture(scope="module")
def oracle() -> OraclePrior:
    return OraclePrior(image_size=PIXELS)


@pytest.fixture(scope="module")
def mesh() -> UnwrappedMesh:
    vertices, faces, _ = CHAIR.mesh
    fine = split_long_edges(Mesh(vertices.astype(np.float64), faces.astype(np.int64)), 1500)
    return unwrap(fine, TEXELS, 60.0, 4.0, ("/nowhere",))


def guide_of(prior: OraclePrior, steps: int, **settings: object) -> Guide:
    common = {"prompt": CHAIR.prompt, "device": "cpu", "backend": "torch", "render.size": PIXELS}
    common["guidance.solver_steps"] = 1
    config = build_config({**common, "guidance.scale": 2.0, "mesh.refine_steps": steps, **settings})
    scene = build_scene(config, "torch", torch.device("cpu"))
    return Guide(prior, encode_words(prior, config.prompt, config.guidance), config, scene)


def plain(color: tuple[int, int, int]) -> np.ndarray:
    return np.full((TEXELS, TEXELS, 3), color, dtype=np.uint8)


def errors(mesh: UnwrappedMesh, texture: np.ndarray, oracle: OraclePrior) -> Tensor:
    """[n] how far renders are from the truth, 0..1, at all pixels inside the silhouette of six views."""
    cameras = turntable_cameras(6, 0.3, 3.0, math.radians(40))
    truth = oracle.render(ViewCondition(cameras, torch.ones(6, 3)))[OBJECTS.index(CHAIR)].permute(0, 2, 3, 1)
    look = Texture(torch.as_tensor(mesh.uv).float(), torch.as_tensor(texture).float() / 255)
    textured = ColoredMesh(torch.as_tensor(mesh.vertices).float(), torch.as_tensor(mesh.faces), look)
    images, coverage = shade_mesh(textured, cameras, PIXELS, "torch")
    return (images - truth).abs().mean(dim=-1)[coverage > 0.99]


@pytest.mark.slow
@pytest.mark.parametrize(("start", "steps"), [((128, 128, 128), 300), ((150, 90, 60), 180)], ids=["grey", "tinted"])
def test_a_wrong_texture_reaches_the_oracle_s_colours(
    mesh: UnwrappedMesh, oracle: OraclePrior, start: tuple[int, int, int], steps: int
) -> None:
    before = errors(mesh, plain(start), oracle)
    refined = refine_texture(mesh, plain(start), None, guide_of(oracle, steps))
    after = errors(mesh, refined, oracle)
    assert before.median() > 0.1
    assert after.median() < 0.05
    assert after.mean() < 0.3 * before.mean()


def test_some_steps_go_the_right_way_and_leave_mesh_and_given_texture_alone(
    mesh: UnwrappedMesh, oracle: OraclePrior
) -> None:
    arrays = {name: getattr(mesh, name).copy() for name in ("vertices", "normals", "uv", "faces")}
    given, told = plain((150, 90, 60)), []
    refined = refine_texture(mesh, given, told.append, guide_of(oracle, 12))
    assert refined.shape == given.shape and refined.dtype == np.uint8
    assert errors(mesh, refined, oracle).mean() < errors(mesh, given, oracle).mean() - 0.005
    assert (given == plain((150, 90, 60))).all()
    assert all(np.array_equal(getattr(mesh, name), array) for name, array in arrays.items())
    assert told == pytest.approx([(step + 1) / 12 for step in range(12)])


def test_the_same_again_and_another_with_another_seed(mesh: UnwrappedMesh, oracle: OraclePrior) -> None:
    first = refine_texture(mesh, plain((128, 128, 128)), None, guide_of(oracle, 3))
    torch.rand(7)  # what others draw does not matter
    assert np.array_equal(first, refine_texture(mesh, plain((128, 128, 128)), None, guide_of(oracle, 3)))
    assert not np.array_equal(first, refine_texture(mesh, plain((128, 128, 128)), None, guide_of(oracle, 3, seed=1)))


def test_fine_detail_outlives_the_refinement(
    mesh: UnwrappedMesh, oracle: OraclePrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is finer than the texels that are optimised is kept, the change being added to it."""
    monkeypatch.setattr("nerf_bridge.mesh.refine_texture.WORKING_SIZE", TEXELS // 4)
    stripes = plain((128, 128, 128))
    stripes[:, ::2] = 100
    refined = refine_texture(mesh, stripes, None, guide_of(oracle, 5)).astype(int)
    uv, faces = torch.as_tensor(mesh.uv), torch.as_tensor(mesh.faces)
    covered = rasterize_uv(uv, faces, TEXELS, "torch").covered.numpy()
    pairs = covered[:, 1::2] & covered[:, ::2]  # the rest is filled from these
    assert pairs.sum() > 1000
    assert np.abs((refined[:, 1::2] - refined[:, ::2])[pairs] - 28).max() <= 4


class Broken(OraclePrior):
    """Answers with what is no number at the second question."""

    asked = 0

    def predict_noise(
        self, noised: Tensor, t: Tensor, embeddings: PromptEmbeddings, condition: ViewCondition | None
    ) -> Tensor:
        self.asked += 1
        good = super().predict_noise(noised, t, embeddings, condition)
        return good * float("nan") if self.asked == 2 else good


def test_a_step_whose_gradient_is_no_number_is_left_out(mesh: UnwrappedMesh, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        refined = refine_texture(mesh, plain((128, 128, 128)), None, guide_of(Broken(image_size=PIXELS), 4))
    assert "1 of 4 steps" in caplog.text
    assert len(np.unique(refined)) > 1


def test_views_are_lit_where_the_field_s_were() -> None:
    cameras = turntable_cameras(2, 0.3, 3.0, 0.7)

    def lit(shading: str, step: int) -> Tensor | None:
        config: GenerateConfig = build_config({"prompt": "a chair", "render.shading": shading})
        return light_of(cameras, config, step)

    assert lit("albedo", 0) is None
    directions = lit("lambertian", 3)
    assert directions is not None and torch.allclose(directions.norm(dim=1), torch.ones(2))
    mixed = [lit("mixed", step) is None for step in range(30)]
    assert 3 < sum(mixed) < 20


def test_light_makes_the_same_picture_ask_for_a_brighter_texture(mesh: UnwrappedMesh, oracle: OraclePrior) -> None:
    def mean_gradient(shading: str) -> float:
        texture = torch.full((TEXELS, TEXELS, 3), 0.5, requires_grad=True)
        look = Texture(torch.as_tensor(mesh.uv).float(), texture)
        textured = ColoredMesh(torch.as_tensor(mesh.vertices).float(), torch.as_tensor(mesh.faces), look)
        view_loss(textured, guide_of(oracle, 10, **{"render.shading": shading}), 0).backward()
        assert texture.grad is not None and torch.isfinite(texture.grad).all()
        return float(-texture.grad.sum())

    assert mean_gradient("lambertian") > mean_gradient("albedo")


def test_each_step_has_its_own_cameras_and_times_end_where_the_field_s_did(mesh: UnwrappedMesh) -> None:
    seen: list[Cameras] = []

    class Watching(OraclePrior):
        def predict_noise(
            self, noised: Tensor, t: Tensor, embeddings: PromptEmbeddings, condition: ViewCondition | None
        ) -> Tensor:
            assert condition is not None
            seen.append(condition.cameras)
            assert float(t.max()) <= 0.5  # guidance.t_max_end
            return torch.zeros_like(noised)

    refine_texture(mesh, plain((9, 9, 9)), None, guide_of(Watching(image_size=PIXELS), 3))
    assert len(seen) == 3 and not torch.equal(seen[0].c2w, seen[1].c2w)
