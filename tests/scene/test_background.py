"""Backgrounds: solid colours and the learned environment."""

import torch

from nerf_bridge.scene.background import LearnedEnvironment, solid_backgrounds


def test_solid_colours() -> None:
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(solid_backgrounds("white", 2, generator), torch.ones(2, 3))
    assert torch.equal(solid_backgrounds("grey", 3, generator), torch.full((3, 3), 0.5))


def test_random_colours_differ_by_view_and_repeat_by_seed() -> None:
    first, again = (solid_backgrounds("random", 500, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.min() >= 0 and first.max() <= 1 and len(first.unique(dim=0)) == 500
    assert (first.mean(0) - 0.5).abs().max() < 0.05


def test_environment_starts_grey_and_learns_a_sky() -> None:
    environment = LearnedEnvironment(seed=0)
    directions = torch.nn.functional.normalize(torch.randn(400, 3, generator=torch.Generator().manual_seed(2)), dim=-1)
    assert (environment(directions) - 0.5).abs().max() < 0.1
    sky = torch.where(directions[:, 2:] > 0, torch.tensor([0.3, 0.5, 0.9]), torch.tensor([0.4, 0.3, 0.2]))
    optimiser = torch.optim.Adam(environment.parameters(), lr=0.05)
    start = torch.nn.functional.mse_loss(environment(directions), sky).item()
    for _ in range(60):
        optimiser.zero_grad()
        loss = torch.nn.functional.mse_loss(environment(directions), sky)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.2 * start
    assert environment(directions[:0]).shape == (0, 3)


def test_environment_is_decided_by_its_seed() -> None:
    first, again, other = (LearnedEnvironment(seed=s).hidden_weight for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
