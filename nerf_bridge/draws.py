"""What each step of a run draws, on its device: views, jitter, light and background, the words for the views; noise
times and noise.

All of it is drawn on the CPU and depends on the settings and the number of the step alone (`step_generator`), so it can
be made ahead: while the device still works at a step, that of the next one is drawn and sent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nerf_bridge.config import GenerateConfig
from nerf_bridge.cuda_graphs import make_room
from nerf_bridge.device import to_device
from nerf_bridge.guidance import (
    EncodedWords,
    ViewWords,
    draw_noise,
    draw_times,
    size_at,
    step_generator,
    t_max_at,
    t_min_at,
)
from nerf_bridge.scene.background import solid_backgrounds
from nerf_bridge.scene.cameras import Cameras, packed, sample_cameras, unpacked
from nerf_bridge.scene.shading import Shading, draw_light_directions, shading_at

KEPT = 2  # steps whose draws are kept: one, and the next


@dataclass(frozen=True)
class ViewDraws:
    """What the b views of a step are rendered with.

    Attributes:
        packed: all that b cameras are, [b, 20] (`scene.cameras.packed`).
        cameras: the same.
        size: pixels along a side.
        shading: of all views.
        jitter: [b, size^2] in [0, 1), see `render`.
        light_dir: [b, 3], unit; None where nothing is lit.
        background: [b, 3] in 0..1; None: what is behind them is learned.
    """

    packed: Tensor
    cameras: Cameras
    size: int
    shading: Shading
    jitter: Tensor
    light_dir: Tensor | None
    background: Tensor | None


class Draws:
    """The draws of a run's steps; those of the last steps are kept."""

    def __init__(self, config: GenerateConfig, encoded: EncodedWords, view_group: int, device: torch.device):
        """`view_group`: views that the prior wants together, which also share their noise time."""
        self.config = config
        self.encoded = encoded
        self.view_group = view_group
        self.device = device
        self._words: dict[int, ViewWords] = {}
        self._views: dict[int, ViewDraws] = {}
        self._noise: dict[tuple[int, tuple[int, ...]], tuple[Tensor, Tensor]] = {}

    def views(self, step: int) -> ViewDraws:
        """What the views of `step` are rendered with."""
        if step not in self._views:
            make_room(self._views, KEPT)
            self._views[step] = draw_views(self.config, step, self.view_group, self.device)
        return self._views[step]

    def words(self, step: int) -> ViewWords:
        """The words for all views of `step`."""
        if step not in self._words:
            cameras = self.views(step).cameras
            make_room(self._words, KEPT)
            self._words[step] = ViewWords(self.encoded, cameras, len(cameras))
        return self._words[step]

    def noise(self, step: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Noise times [b] and standard normal noise of `shape` [b, c, h, w], for the encoded views of `step`."""
        key = (step, shape)
        if key not in self._noise:
            make_room(self._noise, KEPT)
            self._noise[key] = draw_noise_and_times(self.config, step, self.view_group, shape, self.device)
        return self._noise[key]

    def make_ahead(self, step: int) -> None:
        """Draw for `step`, if the run has it: words as asked for in the step before, noise as large as the last."""
        if step >= self.config.steps:
            return
        self.views(step)
        if step - 1 in self._words:
            self.words(step).make_as(self._words[step - 1])
        if self._noise:
            _, shape = next(reversed(self._noise))
            self.noise(step, shape)


def draw_views(config: GenerateConfig, step: int, view_group: int, device: torch.device) -> ViewDraws:
    """Cameras and all that is drawn with them, on `device`."""
    size, seed = size_at(step, config.steps, config.render), config.seed
    shading, solid = shading_at(config.render.shading, seed, step), draw_background(config, step)
    cameras = sample_cameras(config.camera, step_generator(seed, step, "cameras"), view_group)
    jitter = torch.rand(len(cameras), size**2, generator=step_generator(seed, step, "jitter"))
    drawn = [packed(cameras), jitter]
    if shading != "albedo":
        drawn.append(draw_light_directions(cameras, step_generator(seed, step, "light")))
    if solid is not None:
        drawn.append(solid)
    numbers, jitter, *more = to_device(drawn, device)
    background = None if solid is None else more.pop()
    return ViewDraws(numbers, unpacked(numbers), size, shading, jitter, more.pop() if more else None, background)


def draw_background(config: GenerateConfig, step: int) -> Tensor | None:
    """The colours behind the views of a step, [b, 3] in 0..1 on the CPU; None: what is behind them is learned."""
    kind = config.render.background
    if kind == "learned":
        return None
    return solid_backgrounds(kind, config.camera.views, step_generator(config.seed, step, "background"))


def draw_noise_and_times(
    config: GenerateConfig, step: int, view_group: int, shape: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Times [b], the same in a group of views, and noise of `shape` [b, c, h, w], on `device`."""
    t_min, t_max = (at(step, config.steps, config.guidance) for at in (t_min_at, t_max_at))
    times = draw_times(config.seed, step, shape[0] // view_group, t_min, t_max).repeat_interleave(view_group)
    times, noise = to_device([times, draw_noise(config.seed, step, shape)], device)
    return times, noise
