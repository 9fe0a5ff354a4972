"""The embedded prior's network: shapes, conditioning, schedule and geometry of its ray map."""

import math
from dataclasses import replace

import torch

from nerf_bridge.prior.unet import Condition, UNet, UNetConfig, camera_features, ray_map, schedule
from nerf_bridge.scene.cameras import orbit_cameras
from nerf_bridge.scene.rays import camera_rays

TINY = UNetConfig(image_size=16, channels=(64, 64), blocks=1, embedding=64, text_length=4)


def tiny_network() -> UNet:
    """A small network whose zero-initialised outputs are given random weights, so that inputs show in the output."""
    torch.manual_seed(0)
    network = UNet(TINY)
    for parameter in network.parameters():
        if float(parameter.detach().abs().sum()) == 0.0:
            torch.nn.init.normal_(parameter, std=0.05)
    return network.eval()


def condition(b: int, known: bool = True) -> Condition:
    torch.manual_seed(1)
    azimuth = torch.linspace(0, 2, b)
    same = torch.ones(b)
    cameras = orbit_cameras(azimuth, 0.2 * same, 3 * same, 0.7 * same)
    features = camera_features(
        azimuth, cameras.elevation_rad, cameras.distance, cameras.fovy_rad, torch.rand(b, 3), torch.full((b,), known)
    )
    rays = ray_map(cameras.c2w, cameras.fovy_rad, 8) * known
    return Condition(torch.randn(b, 4, 384), torch.ones(b, 4, dtype=torch.bool), features, rays)


def test_output_has_the_shape_of_the_images_and_samples_are_independent() -> None:
    network, told = tiny_network(), condition(3)
    noised, t = torch.randn(3, 3, 16, 16), torch.tensor([0.1, 0.5, 0.9])
    together = network(noised, t, told)
    assert together.shape == (3, 3, 16, 16)
    alone = network(
        noised[1:2], t[1:2], Condition(told.text[1:2], told.text_mask[1:2], told.camera[1:2], told.rays[1:2])
    )
    assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_views_of_a_set_see_each_other_and_no_others() -> None:
    network, told = tiny_network(), condition(6)
    noised, t = torch.randn(6, 3, 16, 16), torch.linspace(0.3, 0.9, 6)
    alone, together = network(noised, t, told), network(noised, t, replace(told, in_sets=4))
    assert torch.allclose(together[4:], alone[4:], atol=1e-5)
    assert (together[:4] - alone[:4]).abs().amax((1, 2, 3)).min() > 1e-3
    noised[3] += 1
    changed = network(noised, t, replace(told, in_sets=4))
    assert (changed[:4] - together[:4]).abs().amax((1, 2, 3)).min() > 1e-4
    assert torch.allclose(changed[4:], together[4:], atol=1e-5)


def test_a_set_of_one_view_four_times_is_that_view_alone() -> None:
    """Attention to four copies of everything is that to one."""
    network, told = tiny_network(), condition(1)
    noised, t = torch.randn(1, 3, 16, 16), torch.tensor([0.6])
    alone = network(noised, t, told)
    four = Condition(*(getattr(told, name).repeat_interleave(4, 0) for name in ("text", "text_mask", "camera", "rays")))
    together = network(noised.repeat(4, 1, 1, 1), t.repeat(4), replace(four, in_sets=4))
    assert torch.allclose(together, alone.expand(4, -1, -1, -1), atol=1e-5)


def test_the_last_word_is_the_designs() -> None:
    """It goes into the time embedding too, where it is seen: other words there do not have the same effect."""
    network, told = tiny_network(), condition(2)
    noised, t = torch.randn(2, 3, 16, 16), torch.tensor([0.7, 0.7])
    base = network(noised, t, told)
    network.embed.design.weight.data.zero_()
    plain = network(noised, t, told)
    assert (base - plain).abs().amax((1, 2, 3)).min() > 1e-3
    told.text_mask[1, -1] = False
    hidden = network(noised, t, told)
    network.embed.design.weight.data.normal_()
    assert torch.equal(network(noised, t, told)[1], hidden[1])


def test_every_part_of_the_condition_matters() -> None:
    network, told = tiny_network(), condition(1)
    noised, t = torch.randn(1, 3, 16, 16), torch.tensor([0.7])
    base = network(noised, t, told)
    changed = {
        "text": Condition(told.text + 1, told.text_mask, told.camera, told.rays),
        "mask": Condition(told.text, ~told.text_mask, told.camera, told.rays),
        "camera": Condition(told.text, told.text_mask, told.camera + 1, told.rays),
        "rays": Condition(told.text, told.text_mask, told.camera, told.rays + 1),
    }
    for name, other in changed.items():
        assert (network(noised, t, other) - base).abs().max() > 1e-4, name
    assert (network(noised, t + 0.1, told) - base).abs().max() > 1e-4


def test_masked_words_do_not_matter() -> None:
    network, told = tiny_network(), condition(1)
    mask = torch.tensor([[True, True, False, False]])
    text = told.text.clone()
    noised, t = torch.randn(1, 3, 16, 16), torch.tensor([0.7])
    base = network(noised, t, Condition(text, mask, told.camera, told.rays))
    text[:, 2:] += 5
    assert torch.equal(network(noised, t, Condition(text, mask, told.camera, told.rays)), base)


def test_schedule_preserves_variance_and_grows_noisier() -> None:
    t = torch.linspace(0.001, 0.999, 50)
    alpha, sigma = schedule(t)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(50))
    assert bool((sigma.diff() > 0).all())


def test_ray_map_agrees_with_the_renderers_rays() -> None:
    azimuth = torch.tensor([0.3, 2.0])
    cameras = orbit_cameras(azimuth, torch.tensor([0.1, 0.5]), torch.full((2,), 3.0), torch.full((2,), 0.7))
    rays = camera_rays(cameras, 8, 8)
    planes = ray_map(cameras.c2w, cameras.fovy_rad, 8)
    directions = rays.directions.view(2, 8, 8, 3).permute(0, 3, 1, 2)
    assert torch.allclose(planes[:, :3], directions, atol=1e-5)
    moments = torch.linalg.cross(rays.origins, rays.directions).view(2, 8, 8, 3).permute(0, 3, 1, 2) / 3
    assert torch.allclose(planes[:, 3:], moments, atol=1e-5)


def test_hidden_cameras_tell_only_the_background() -> None:
    b, ones = torch.rand(2, 3), torch.ones(2)
    hidden = camera_features(ones, ones, 3 * ones, ones, b, torch.tensor([False, False]))
    other = camera_features(2 * ones, 0 * ones, 3.1 * ones, ones, b, torch.tensor([False, False]))
    assert torch.equal(hidden, other)
    assert torch.allclose(hidden[:, 9:12], 2 * b - 1)
    shown = camera_features(ones, ones, 3 * ones, ones, b, torch.tensor([True, True]))
    assert math.isclose(float(shown[0, 0]), math.sin(1.0), rel_tol=1e-6)
