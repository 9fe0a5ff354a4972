"""The occupancy grid finds what is there, forgets what is gone, and looks at few cells."""

import logging

import pytest
import torch

from nerf_bridge.scene.occupancy import FULL_UPDATES, OccupancyGrid

STEP = 2.0 / 64


class Ball:
    """A solid ball that counts the points it was asked for."""

    def __init__(
        self, radius: float, centre: tuple[float, float, float] = (0.0, 0.0, 0.0), sigma: float = 20.0
    ) -> None:
        self.radius, self.centre, self.sigma, self.asked = radius, torch.tensor(centre), sigma, 0

    def density(self, points: torch.Tensor) -> torch.Tensor:
        assert points.abs().max() <= 1
        self.asked += len(points)
        return self.sigma * ((points - self.centre).norm(dim=-1) < self.radius).float()


def cell_centres(resolution: int) -> torch.Tensor:
    axis = (torch.arange(resolution) + 0.5) * (2.0 / resolution) - 1.0
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)


def update(grid: OccupancyGrid, field: Ball, times: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(times):
        grid.update(field, STEP, decay=0.9, threshold=0.01, generator=generator)


def test_everything_is_occupied_at_the_start() -> None:
    grid = OccupancyGrid(8)
    assert grid.occupied_fraction == 1.0 and grid.resolution == 8
    assert set(grid.state_dict()) == {"ema", "occupied", "n_updates"}


def test_finds_a_small_ball_and_empties_the_rest() -> None:
    grid, ball = OccupancyGrid(32), Ball(0.2, (0.5, -0.3, 0.1))
    update(grid, ball, 12)
    distance = (cell_centres(32) - ball.centre).norm(dim=-1)
    half_diagonal = 3**0.5 / 32
    assert grid.occupied[distance < ball.radius - half_diagonal].all()
    assert not grid.occupied[distance > ball.radius + half_diagonal].any()
    assert 0.002 < grid.occupied_fraction < 0.02


def test_forgets_what_is_gone_and_finds_what_is_new() -> None:
    grid, old, new = OccupancyGrid(16), Ball(0.3, (0.5, 0.0, 0.0)), Ball(0.3, (-0.5, 0.0, 0.0))
    update(grid, old, 6)
    assert grid.occupied[12, 8, 8] and not grid.occupied[4, 8, 8]
    update(grid, new, 60, seed=1)
    assert grid.occupied[4, 8, 8] and not grid.occupied[12, 8, 8]


def test_later_updates_look_at_few_cells() -> None:
    grid, ball = OccupancyGrid(32), Ball(0.2)
    update(grid, ball, FULL_UPDATES)
    assert ball.asked == FULL_UPDATES * 32**3
    ball.asked = 0
    update(grid, ball, 1)
    assert 0.2 * 32**3 < ball.asked < 0.3 * 32**3


def test_same_generator_same_grid_and_the_state_resumes() -> None:
    first, resumed, ball = OccupancyGrid(16), OccupancyGrid(16), Ball(0.4)
    generator = torch.Generator().manual_seed(3)
    for _ in range(FULL_UPDATES + 1):
        first.update(ball, STEP, 0.9, 0.01, generator)
    resumed.load_state_dict(first.state_dict())
    copy = torch.Generator()
    copy.set_state(generator.get_state())
    first.update(ball, STEP, 0.9, 0.01, generator)
    resumed.update(ball, STEP, 0.9, 0.01, copy)
    assert torch.equal(first.ema, resumed.ema) and torch.equal(first.occupied, resumed.occupied)


def test_thin_even_fog_stays_occupied() -> None:
    grid = OccupancyGrid(8)
    update(grid, Ball(9.0, sigma=0.01), 3)
    assert grid.occupied_fraction > 0.9


def test_an_empty_grid_is_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    grid = OccupancyGrid(8)
    with caplog.at_level(logging.WARNING):
        update(grid, Ball(0.0), 1)
    assert grid.occupied_fraction == 0.0 and "empty" in caplog.text


def test_a_density_that_is_no_number_leaves_the_other_cells_and_the_mean_alone() -> None:
    class Broken(Ball):
        def density(self, points: torch.Tensor) -> torch.Tensor:
            sigma = super().density(points)
            sigma[:10] = torch.nan
            return sigma

    grid, healthy = OccupancyGrid(12), OccupancyGrid(12)
    update(grid, Broken(0.5), 3)
    update(healthy, Ball(0.5), 3)
    assert bool(torch.isfinite(grid.ema).all()) and torch.equal(grid.occupied, healthy.occupied)
