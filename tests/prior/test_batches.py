"""Training batches and flaws, drawn on the CPU from a few primitives."""

from dataclasses import replace

import pytest
import torch

from nerf_bridge.prior import batches
from nerf_bridge.prior.batches import (
    BRIGHTNESS,
    PAIR_REPEATS,
    TrainingData,
    astray_colours,
    astray_rows,
    degraded_rows,
    draw_batch,
    draw_repeats,
    go_astray,
    patches,
    prepare,
)
from nerf_bridge.prior.data.captions import build_caption_table
from nerf_bridge.prior.data.colours import TINT_WORDS
from nerf_bridge.prior.data.primitives import build_primitives
from nerf_bridge.prior.degrade import FLAWS, degrade, draw_flaws
from nerf_bridge.prior.text import TextEncoder, text_encoder_folder
from nerf_bridge.prior.unet import TOGETHER
from nerf_bridge.prior.views import compose, render_library, training_cameras


@pytest.fixture(scope="module")
def data() -> TrainingData:
    models = build_primitives(0, n_single=3, n_pairs=1)
    captions = build_caption_table(models, 0)
    views = render_library(models, 3, seed=0, size=64, n_threads=1, show_progress=False)
    encoder = TextEncoder(text_encoder_folder(), 40)
    return prepare(models, captions, views, encoder, torch.device("cpu"))


@pytest.mark.compiler
def test_batches_have_images_in_range_and_conditions_of_the_right_shapes(data: TrainingData) -> None:
    torch.manual_seed(0)
    batch = draw_batch(data, 16)
    assert batch.images.shape == (16, 3, 64, 64)
    assert float(batch.images.min()) >= -1.001
    assert float(batch.images.max()) <= 1.001
    assert batch.condition.text.shape == (16, 40, 384)
    assert batch.condition.rays.shape == (16, 6, 32, 32)
    assert float(batch.images.std()) > 0.1


@pytest.mark.compiler
def test_views_of_a_set_show_one_thing_told_in_the_same_words(data: TrainingData) -> None:
    """The first 64 of 80 images; two sets of them are flawed, and two of the others."""
    torch.manual_seed(0)
    told = draw_batch(data, 80, in_sets=64).condition
    assert told.in_sets == 64
    sets = told.text[:64].unflatten(0, (16, TOGETHER)), told.text_mask[:64].unflatten(0, (16, TOGETHER))
    assert all(torch.equal(part, part[:, :1].expand_as(part)) for part in sets)
    assert len(torch.unique(sets[0][:, 0].flatten(1), dim=0)) > 8  # the sets differ
    assert len(torch.unique(told.camera[:TOGETHER], dim=0)) > 1  # from several sides
    assert degraded_rows(80, 64, torch.device("cpu")).tolist() == [*range(8), 64, 65]
    assert degraded_rows(16, 0, torch.device("cpu")).tolist() == [0, 1]


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """What images are composed with, call by call."""
    calls = []

    def watched(layers, tint, tinted, background):
        calls.append({"tint": tint, "tinted": tinted, "background": background})
        return compose(layers, tint, tinted, background)

    monkeypatch.setattr(batches, "compose", watched)
    return calls


@pytest.mark.compiler
def test_a_set_is_of_one_model_in_one_tint(data: TrainingData, composed: list[dict[str, torch.Tensor]]) -> None:
    torch.manual_seed(0)
    draw_batch(data, 32, in_sets=32)
    (seen,) = composed
    for name in ("tint", "tinted"):
        of_sets = seen[name].unflatten(0, (8, TOGETHER))
        assert torch.equal(of_sets, of_sets[:, :1].expand_as(of_sets)), name
    assert len(torch.unique(seen["tint"], dim=0)) == 8 and len(torch.unique(seen["background"], dim=0)) > 16


def test_one_set_in_two_that_are_not_degraded_goes_astray() -> None:
    cpu = torch.device("cpu")
    assert astray_rows(80, 64, 0, cpu).tolist() == []
    of_sets = [row for first in range(12, 64, 8) for row in range(first, first + TOGETHER)]
    assert astray_rows(80, 64, 2, cpu).tolist() == [*of_sets, *range(70, 74)]
    assert not set(astray_rows(384, 256, 2, cpu).tolist()) & set(degraded_rows(384, 256, cpu).tolist())
    assert len(astray_rows(384, 256, 2, cpu)) == 168


@pytest.mark.compiler
def test_what_goes_astray_is_told_and_shown_as_something_else(
    data: TrainingData, composed: list[dict[str, torch.Tensor]]
) -> None:
    """The image itself is in the colour that its word means, and the others are what they are."""
    torch.manual_seed(0)
    batch = draw_batch(data, 256, in_sets=128, astray_every=2)
    lost = astray_rows(256, 128, 2, torch.device("cpu"))
    (seen,) = composed
    tint, tinted = seen["tint"], seen["tinted"]
    meant = (tint[:, None] - data.tint_mean).abs().amax(2).amin(1) < 1e-6
    assert bool(meant[lost][tinted[lost]].all()) and int(tinted[lost].sum()) > 20
    assert not bool(meant[tinted].all())  # the others have their shades
    change = (batch.astray - batch.images).abs().mean((1, 2, 3))
    told = batch.condition.text_mask[lost].any(1)
    assert set(change.nonzero().flatten().tolist()) == set(lost[told].tolist())
    assert 0.01 < float(change[lost].median()) < 0.5
    assert float(batch.astray.min()) >= -1.001 and float(batch.astray.max()) <= 1.001
    plain = draw_batch(data, 16)
    assert torch.equal(plain.astray, plain.images)


@pytest.mark.compiler
def test_colours_go_astray_to_what_the_model_may_be_drawn_in(data: TrainingData) -> None:
    """Red goes to darker red and, as nothing else is usable, to blues; a set goes one way."""
    red, blue = TINT_WORDS.index("red"), TINT_WORDS.index("blue")
    usable = torch.zeros_like(data.usable)
    usable[:, 1 + red] = usable[:, 1 + blue] = True
    torch.manual_seed(0)
    leader = torch.arange(4000) // TOGETHER * TOGETHER
    models, tint = torch.zeros(2, 4000, dtype=torch.long)
    colours = astray_colours(replace(data, usable=usable), models, tint + 1 + red, leader)
    assert torch.equal(colours, colours[leader])

    def share(amounts: torch.Tensor, low: float, high: float) -> torch.Tensor:
        same = amounts.amax(1) - amounts.amin(1) < 1e-4
        return same & (amounts[:, 0] > low - 1e-4) & (amounts[:, 0] < high + 1e-4)

    dark, blues = (share(colours / data.tint_mean[word], *BRIGHTNESS) for word in (red, blue))
    assert bool((dark | blues).all())
    assert 0.01 < float(blues.float().mean()) < 0.06  # of a half those whose lot is blue, one of 16 words


def test_only_the_tintable_part_goes_to_another_colour_and_the_background_stays() -> None:
    layers = torch.zeros(1, 8, 16, 16, dtype=torch.uint8)
    layers[0, 3, 4:12, 4:12] = layers[0, 6, 4:12, 4:12] = layers[0, 7, 4:12] = 255  # tintable from column 4 to 11
    layers[0, 0:3, 4:12, :4] = layers[0, 0:3, 4:12, 12:] = 128  # and grey on both sides of it
    red, to_blue, grass = torch.tensor([[1.0, 0, 0]]), torch.tensor([[-1.0, 0, 0.5]]), torch.tensor([[0.2, 0.7, 0.3]])
    image = compose(layers, red, torch.tensor([True]), grass)
    there = go_astray(image, layers, to_blue, torch.ones(1, 1, 16, 16), torch.zeros(1))
    assert torch.equal(there[..., :3, :], image[..., :3, :])
    assert torch.allclose(there[0, :, 8, 8], torch.tensor([0, 0, 0.53]), atol=0.01)  # stronger, as in distilled
    assert torch.allclose(there[0, :, 8, 1], image[0, :, 8, 1], atol=0.02)
    untouched = go_astray(image, layers, to_blue, torch.zeros(1, 1, 16, 16), torch.zeros(1))
    assert torch.allclose(untouched[0, :, 8, 8], torch.tensor([1.0, 0, 0]), atol=0.02)


def test_patches_are_smooth_and_lean_one_way_in_a_set() -> None:
    torch.manual_seed(0)
    leader = torch.arange(400) // TOGETHER * TOGETHER
    weight = patches(leader, leader.unique(), 64)
    assert weight.shape == (100, 1, 64, 64)
    weight = patches(leader, torch.arange(400), 64)
    assert weight.shape == (400, 1, 64, 64)
    assert float(weight.min()) >= 0 and float(weight.max()) == pytest.approx(1)
    assert float(weight.diff(dim=-1).abs().max()) < 0.04
    of_sets = weight.mean((1, 2, 3)).unflatten(0, (-1, TOGETHER))
    assert float(of_sets.mean(1).std()) > 2 * float(of_sets.std(1).mean())


def test_pairs_of_solids_are_drawn_less_than_things_with_one_model() -> None:
    solids = build_primitives(0, n_single=19, n_pairs=3)  # cube twice, the others once
    thing = replace(solids[1], noun="teapot", category="Kitchen")
    repeats = dict(zip([m.name for m in solids], draw_repeats([*solids, thing])[:-1], strict=True))
    assert draw_repeats([*solids, thing])[-1] == 8
    assert {repeats[m.name] for m in solids[19:]} == {PAIR_REPEATS} and PAIR_REPEATS <= 2
    assert repeats[solids[0].name] == repeats[solids[18].name] == 7  # 8 / 2^0.25


@pytest.mark.compiler
def test_text_and_camera_are_dropped_now_and_then(data: TrainingData) -> None:
    torch.manual_seed(0)
    condition = draw_batch(data, 512).condition
    without_words = (~condition.text_mask.any(1)).float().mean()
    without_rays = (condition.rays.abs().amax((1, 2, 3)) == 0).float().mean()
    assert 0.05 < without_words < 0.16
    assert 0.04 < without_rays < 0.13


def test_compose_tints_only_what_is_tintable_and_fills_the_background() -> None:
    layers = torch.zeros(1, 8, 2, 2, dtype=torch.uint8)
    layers[0, 0, 0, 0], layers[0, 7, 0, 0] = 255, 255  # a pixel of untintable red
    layers[0, 4, 0, 1], layers[0, 6, 0, 1], layers[0, 7, 0, 1] = 255, 128, 255  # a pixel of tintable green
    blue, white = torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1, 3)
    plain = compose(layers, blue, torch.tensor([False]), white)[0]
    tinted = compose(layers, blue, torch.tensor([True]), white)[0]
    assert plain[:, 0, 0].tolist() == tinted[:, 0, 0].tolist() == [1.0, 0.0, 0.0]
    assert plain[:, 0, 1].tolist() == [0.0, 1.0, 0.0]
    assert torch.allclose(tinted[:, 0, 1], torch.tensor([0.0, 0.0, 128 / 255]))
    assert plain[:, 1, 1].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", list(FLAWS))
def test_each_flaw_changes_the_image_mildly(name: str) -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 16, 16) * 0.5 + torch.linspace(0, 0.5, 16)
    flawed = degrade(images, torch.full((4,), list(FLAWS).index(name)), torch.rand(4))
    assert flawed.shape == images.shape
    assert float(flawed.min()) >= 0.0
    assert float(flawed.max()) <= 1.0
    assert 0.005 < float((flawed - images).abs().mean()) < 0.35


def test_half_of_the_flaws_are_those_of_a_distillation() -> None:
    torch.manual_seed(0)
    counts = torch.bincount(draw_flaws(20_000, torch.device("cpu")), minlength=len(FLAWS)) / 20_000
    assert 0.48 < float(counts[0]) < 0.54 and next(iter(FLAWS)) == "distilled"
    assert float(counts[1:].min()) > 0.05


def test_what_is_thin_fades_in_a_distillation_and_what_is_thick_stays() -> None:
    image = torch.ones(1, 3, 32, 32)
    image[:, 1:, 4:16, 4:28] = 0.2  # a red seat
    image[:, 1:, 16:30, 8] = 0.2  # a red leg
    flawed = degrade(image, torch.zeros(1, dtype=torch.long), torch.rand(1))[0]
    seat, leg, behind = flawed[1, 10, 16], flawed[1, 24, 8], flawed[1, 24, 20]
    assert float(seat) < 0.2 and float(behind) == 1.0 and 0.6 < float(leg) <= 1.0


def test_training_cameras_cover_the_ranges() -> None:
    cameras = training_cameras(2000, torch.Generator().manual_seed(0))
    elevation = torch.rad2deg(cameras.elevation_rad)
    assert float(elevation.min()) >= -15.001
    assert float(elevation.max()) <= 55.001
    assert 2.8 <= float(cameras.distance.min()) <= float(cameras.distance.max()) <= 3.2
    assert 400 < int((cameras.azimuth_rad < torch.pi / 2).sum()) < 600
