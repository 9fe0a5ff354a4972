"""The probe tells a network that listens to the camera and the words from one that does not."""

import json
import sys

import pytest
import torch

from nerf_bridge.errors import UserError
from nerf_bridge.prior import probe
from nerf_bridge.prior.data.captions import build_caption_table
from nerf_bridge.prior.data.design_masks import design_masks
from nerf_bridge.prior.data.pack import pack_library
from nerf_bridge.prior.data.primitives import build_primitives
from nerf_bridge.prior.designs import DESIGNS
from nerf_bridge.prior.embedded import save_weights
from nerf_bridge.prior.probe import AzimuthProbe
from nerf_bridge.prior.text import TextEncoder, text_encoder_folder
from nerf_bridge.prior.unet import UNet, UNetConfig, schedule

pytestmark = pytest.mark.compiler  # the probe's pictures are rendered by the C++ z-buffer
CPU = torch.device("cpu")
TINY = UNetConfig(image_size=64, channels=(64, 64), blocks=1, embedding=64, text_length=8)
WRONG = ("rise_azimuth_90", "rise_azimuth_180", "rise_elevation_30", "rise_words")


@pytest.fixture(scope="module")
def models():
    return build_primitives(0, n_single=2, n_pairs=12)


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder(text_encoder_folder(), TINY.text_length)


@pytest.fixture(scope="module")
def measured(models, encoder):
    return AzimuthProbe.build(models, encoder, CPU, n_images=6)


class Listener(torch.nn.Module):
    """Knows every image of a probe by its camera and words: far from what it knows, its v is worse.

    Attributes:
        listens_to: which part of the condition it compares, of `camera`, `rays`, `text`; none: it knows by the noise.
    """

    def __init__(self, measured, listens_to=()):
        super().__init__()
        self.config, self.listens_to = TINY, listens_to
        self.scale = torch.nn.Parameter(torch.zeros(()))
        self.measured = measured
        self.known = probe._condition(measured.truth, 32, torch.float32)

    def forward(self, noised, t, told):
        alpha, sigma = (level[0] for level in schedule(t))
        everything = alpha * self.measured.images + sigma * self.measured.noise
        row = torch.cdist(noised.flatten(1), everything.flatten(1)).argmin(1)
        v = alpha * self.measured.noise[row] - sigma * self.measured.images[row]
        error = torch.full((len(row),), 0.1)
        for name in self.listens_to:
            error = error + (getattr(told, name) - getattr(self.known, name)[row]).flatten(1).norm(dim=1)
        return v + error[:, None, None, None]


def test_its_objects_look_different_from_other_sides(measured):
    assert measured.images.shape == measured.noise.shape == (6, 3, 64, 64)
    assert float(measured.images.min()) >= -1 and float(measured.images.max()) <= 1
    assert torch.allclose(measured.images[:, :, 0, 0], torch.tensor(0.0), atol=0.01)  # mid grey behind
    assert len(torch.unique(measured.truth.azimuth_rad)) == 6
    assert measured.truth.text.shape == (6, 8, 384)


def test_a_ball_is_never_taken(encoder):
    model = next(m for m in build_primitives(0, n_single=30, n_pairs=0) if m.noun == "ball")
    assert all(probe._asymmetric_view(model, azimuth, 0.2) is None for azimuth in (0.0, 1.0, 4.0))


def test_things_that_look_the_same_from_everywhere_are_refused(encoder):
    balls = [m for m in build_primitives(0, n_single=30, n_pairs=0) if m.noun == "ball"]
    with pytest.raises(UserError, match="none of the 2 models looks different enough"):
        AzimuthProbe.build(balls, encoder, CPU)


def test_the_same_seed_takes_the_same_views(models, encoder, measured):
    again = AzimuthProbe.build(models, encoder, CPU, n_images=6)
    other = AzimuthProbe.build(models, encoder, CPU, n_images=6, seed=1)
    assert torch.equal(again.images, measured.images) and torch.equal(again.noise, measured.noise)
    assert not torch.equal(other.images, measured.images)


def test_a_network_that_ignores_what_it_is_told_shows_no_rise(measured):
    figures = measured.measure(Listener(measured))
    assert figures["error"] == pytest.approx(0.01, rel=1e-3)
    assert [figures[name] for name in WRONG] == pytest.approx([0.0] * 4, abs=1e-6)


def test_a_network_before_training_shows_no_rise_and_the_error_of_no_answer(measured):
    figures = measured.measure(UNet(TINY))
    alpha, sigma = schedule(torch.tensor(probe.TIME))
    silent = (alpha * measured.noise - sigma * measured.images).square().mean()
    assert figures["error"] == pytest.approx(float(silent), rel=1e-4)
    assert [figures[name] for name in WRONG] == pytest.approx([0.0] * 4, abs=1e-6)


@pytest.mark.parametrize(
    ("part", "rises"),
    [("camera", {"rise_azimuth_90", "rise_azimuth_180", "rise_elevation_30"}), ("text", {"rise_words"})],
)
def test_a_network_that_listens_shows_what_it_listens_to(measured, part, rises):
    figures = measured.measure(Listener(measured, (part,)))
    assert figures["error"] == pytest.approx(0.01, rel=1e-3)
    assert {name for name in WRONG if figures[name] > 0.5} == rises
    assert all(abs(figures[name]) < 1e-6 for name in set(WRONG) - rises)


def test_rays_tell_the_camera_too(measured):
    figures = measured.measure(Listener(measured, ("rays",)))
    assert figures["rise_azimuth_180"] > figures["rise_elevation_30"] > 0.5


def test_a_network_that_listens_to_the_design_shows_it(models, encoder):
    """On the images of captions that fit several models, here as if designs 1 to 3 meant half of the models."""
    masks = torch.tensor([0b111, 0b111, 0, -1 + (1 << DESIGNS)] * len(models))[: len(models)]
    with_designs = AzimuthProbe.build(models, encoder, CPU, n_images=6, designs=masks)
    several = with_designs.designs.several
    told = {probe.own_caption(model) for model, mask in zip(models, masks.tolist(), strict=True) if mask == 0b111}
    assert several.tolist() == [caption in told for caption in with_designs.captions] and 0 < several.sum() < 6
    listener = Listener(with_designs, ("text",))
    listener.known = probe._condition(with_designs.designs.own, 32, torch.float32)
    figures = with_designs.measure(listener)
    assert figures["error_design"] == pytest.approx(0.01, rel=1e-3) and figures["rise_design"] > 0.5
    none = torch.zeros(len(models), dtype=torch.long)
    assert AzimuthProbe.build(models, encoder, CPU, 6, designs=none).designs is None


def test_own_designs_are_those_of_the_own_caption(models):
    captions = build_caption_table(models, 0)
    masks = probe.own_designs(captions, models, torch.from_numpy(design_masks(captions, models)))
    alike = [[probe.own_caption(other) for other in models].count(probe.own_caption(model)) for model in models]
    for model, mask, n in zip(models, masks.tolist(), alike, strict=True):
        assert (mask == (1 << DESIGNS) - 1) == (n == 1), model.name


def test_the_command_prints_the_figures(models, tmp_path, monkeypatch, capsys):
    pack_library(models, tmp_path / "library.npz")
    save_weights(UNet(TINY), tmp_path / "weights", {})
    words = ["probe", "--library", str(tmp_path / "library.npz"), "--weights", str(tmp_path / "weights")]
    monkeypatch.setattr(sys, "argv", words)
    probe.main()
    figures = json.loads(capsys.readouterr().out)
    assert set(figures) == {"images", "error", *WRONG}
    assert 1 <= figures["images"] <= 2 * len(models)
    assert all(abs(figures[name]) < 0.01 for name in WRONG)
