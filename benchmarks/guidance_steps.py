"""The whole optimisation step with SD 2.1-base's sizes, ours beside plain eager ones, stage by stage.

The scene is that of configs/published-3d.yaml, seen from distance 1.5 with a field of view of 55 degrees; its learning
rates are so small that it stays what it is. "ball" is the opaque ball of benchmarks/bench_inputs.py, marched through a
shell of cells; "blob" the density that a run starts from.

Two steps are compared with ours, both with diffusers' modules in eager half precision, torch's AdamW, and no decoding
whose result nobody uses:
    eager               everything in torch operations, the render too: what the package's kernels stand for;
    eager, our render   the render by our kernels, so that the guidance alone makes the difference.

Floors: those of network, encoder and render (`render_cases.render_floors`), and of the optimiser that of
`kernel_cases.adam_case`: every gradient read, and of the touched numbers 24 bytes moved. A step's is the sum of its
stages', since each waits for the one before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bench_inputs import BALL, DISTANCE, FOVY_DEG, n_visible, shell_occupancy
from benchmarks.guidance_cases import PROMPT, encoder_work, network_work
from benchmarks.guidance_models import FAMILIES, Build, make_prior
from benchmarks.kernel_cases import TWIN_BYTES, Setting, Version
from benchmarks.kernels import fits
from benchmarks.render_cases import render_floors
from benchmarks.timing import GIB, Clock, Timing, peak_gib, time_stages
from benchmarks.torch_twins import TorchField
from nerf_bridge.config import GenerateConfig, build_config
from nerf_bridge.draws import Draws, draw_views
from nerf_bridge.graphed_render import GraphedRender
from nerf_bridge.guidance import (
    distillation_loss,
    encode_words,
    guidance_gradient,
    stage_at,
)
from nerf_bridge.ops.march import march_rays
from nerf_bridge.optimize import render_views, training_step, update_occupancy, view_renderer
from nerf_bridge.prior.protocol import Prior
from nerf_bridge.regularisers import regularisers
from nerf_bridge.run.state import Progress, build_optimiser
from nerf_bridge.scene.rays import camera_rays
from nerf_bridge.scene.scene import Scene, build_scene
from nerf_bridge.settings import load_yaml

ROOT = Path(__file__).resolve().parents[1]
STEPS = 25000
FIRST = {64: 1, 512: 21001}  # of the steps that are timed, at that size: the later ones in stage two of the bridge
NO_UPDATES = 1000  # steps between two updates of the occupancy while steps are timed; an update has a line of its own
OPENING_UPDATES = 4


@dataclass(frozen=True)
class StepCase:
    """A render of `size` pixels a side of the "ball" or the "blob"."""

    name: str
    size: int
    shape: str


@dataclass(frozen=True)
class Runner:
    """All that a step takes."""

    scene: Scene
    optimiser: Any
    prior: Prior
    config: GenerateConfig
    views: GraphedRender
    draws: Draws


@dataclass(frozen=True)
class StepCounts:
    """How large the work of a step is.

    Attributes:
        samples: of the first view that is timed.
        visible: of them, those that the light reaches.
        numbers: of all parameters.
        touched: of them, those with a gradient at the last step that was timed.
    """

    samples: int
    visible: int
    numbers: int
    touched: int


class EagerAdamW(torch.optim.AdamW):
    """torch's, which tells the step its parameters, and has nothing to make ready."""

    @property
    def parameters(self) -> list[Tensor]:
        """All that it moves."""
        return [p for group in self.param_groups for p in group["params"]]

    def prepared(self) -> Callable[[], object]:
        """The step itself."""
        return self.step


def step_config(case: StepCase, shrink: int) -> GenerateConfig:
    """The published settings for this case, its pictures `shrink` times smaller on a side."""
    changes: dict[str, Any] = load_yaml(ROOT / "configs" / "published-3d.yaml")
    changes |= {
        "prompt": PROMPT,
        "steps": STEPS,
        "occupancy.every": NO_UPDATES,
        "camera.distance_min": DISTANCE,
        "camera.distance_max": DISTANCE,
        "camera.fovy_min_deg": FOVY_DEG,
        "camera.fovy_max_deg": FOVY_DEG,
        "render.size": max(512 // shrink, 16),
        "render.early_size": max(64 // shrink, 16),
        "optim.lr_grid": 1e-12,
        "optim.lr_decoder": 1e-12,
    }
    config = build_config(changes)
    if case.shape == "blob":
        return config
    ball = BALL.model_dump()
    return build_config(changes | {f"field.{name}": value for name, value in ball.items()})


def make_scene(case: StepCase, config: GenerateConfig, backend: str, device: torch.device) -> Scene:
    """The scene as it is while steps are timed."""
    scene = build_scene(config, backend, device)
    if case.shape == "ball":
        cells = shell_occupancy(device)
        scene.occupancy.ema = torch.zeros(cells.shape, device=device)
        scene.occupancy.occupied = cells
    else:
        for step in range(OPENING_UPDATES):
            update_occupancy(scene, config, step)
    return scene


def make_runner(scene: Scene, config: GenerateConfig, setting: Setting, kind: str) -> Runner:
    """Optimiser and prior of one kind: "ours", "eager" or "eager, our render"."""
    build = Build(setting.device, setting.shrink > 1)
    prior = make_prior(FAMILIES["sd21"], build, ours=kind == "ours")
    words = encode_words(prior, PROMPT, config.guidance)
    optimiser: Any = build_optimiser(scene, config)
    if kind != "ours":
        groups = [{"params": group["params"], "lr": group["lr"]} for group in optimiser.param_groups]
        optimiser = EagerAdamW(groups, betas=(0.9, 0.99), eps=config.optim.eps)
    if kind == "eager":
        field: Any = TorchField(scene.field, compiled=False)
        scene = Scene(field, scene.occupancy, scene.environment, scene.step_size, "torch", scene.device)
    views = view_renderer(scene, 0) if kind == "ours" else GraphedRender(scene, enabled=False)
    draws = Draws(config, words, prior.view_group, scene.device)
    return Runner(scene, optimiser, prior, config, views, draws)


def come_to_pace(runner: Runner, step: int) -> None:
    """Render as before and after two updates of the occupancy, so that views come from a CUDA graph where a run's do:
    in all steps but the one after each update."""
    for _ in range(2):
        runner.views.forget_counts()
        render_views(runner.scene, runner.draws.views(step), views=runner.views)
    render_views(runner.scene, runner.draws.views(step), views=runner.views)


def run_step(of: Runner, step: int) -> None:
    """The whole step."""
    progress = Progress(step=step)
    training_step(of.scene, of.optimiser, of.prior, of.draws, of.config, progress, of.views)


def view_counts(scene: Scene, config: GenerateConfig, step: int) -> tuple[int, int]:
    """Samples of the view of a step, and how many of them the light reaches, without jitter."""
    with torch.no_grad():
        rendering, condition = render_views(scene, draw_views(config, step, 1, scene.device))
        height, width = rendering.opacity.shape[1:]
        rays = camera_rays(condition.cameras, height, width, scene.backend)
        occupied = scene.occupancy.occupied
        samples = march_rays(rays.origins, rays.directions, occupied, scene.step_size, None, scene.backend)
        sigmas = torch.cat([scene.field.density(part) for part in samples.points.split(1 << 20)])
        return samples.n, n_visible(sigmas, samples)


def step_floors(counts: StepCounts, setting: Setting) -> dict[str, float]:
    """Milliseconds by stage, and of the whole step."""
    family, build = FAMILIES["sd21"], Build(setting.device, setting.shrink > 1)
    flop, weights = network_work(family, build, 2)
    forward, both = encoder_work(family, build, 1)
    render = render_floors(setting, counts.numbers, counts.touched, counts.visible)
    floors = {
        "render": render["forward"],
        "encode": setting.floor(0, forward),
        "predict": setting.floor(weights, flop),
        "backward": setting.floor(0, both - forward) + render["backward"],
        "optimiser": setting.floor(4 * counts.numbers + 24 * counts.touched),
    }
    return floors | {"step": sum(floors.values())}


def time_step(case: StepCase, setting: Setting, clock: Clock, kind: str) -> tuple[dict[str, Timing], StepCounts]:
    """Timings by stage and of the whole step, peak memory, and how large the work is.

    Raises:
        RuntimeError: it would not fit into memory.
    """
    config = step_config(case, setting.shrink)
    scene = make_scene(case, config, setting.backend, setting.device)
    n_samples, visible = view_counts(scene, config, FIRST[case.size])
    plan = Version(kind, list, needs=TWIN_BYTES * n_samples)
    if kind == "eager" and not fits(plan, setting.device):
        raise RuntimeError(f"would not fit into memory ({plan.needs / GIB:.0f} GiB)")
    runner = make_runner(scene, config, setting, kind)
    if kind == "ours":
        come_to_pace(runner, FIRST[case.size])
    steps = iter(range(FIRST[case.size], STEPS))

    def whole() -> None:
        run_step(runner, next(steps))

    measured = {"step": time_stages([whole], clock)[0]}
    stages = Stages(runner, steps)
    names = {"render": stages.render, "encode": stages.encode, "predict": stages.predict}
    names |= {"backward": stages.backward, "optimiser": stages.optimise}
    timings = time_stages(list(names.values()), clock)
    measured |= dict(zip(names, timings, strict=False))
    touched = sum(int((p.grad != 0).sum()) for p in runner.optimiser.parameters if p.grad is not None)
    counts = StepCounts(n_samples, visible, sum(p.numel() for p in runner.optimiser.parameters), touched)
    if kind == "ours" and case.shape == "blob":
        measured["occupancy update"] = time_stages([stages.update_occupancy], clock)[0]
    memory = peak_gib(whole, setting.device)
    if memory is not None:
        measured["memory"] = Timing(memory, memory, memory, 1)
    return measured, counts


class Stages:
    """The parts of optimize.training_step, each to be run on its own, in order."""

    def __init__(self, runner: Runner, steps: Any):
        self.of = runner
        self.steps = steps

    def render(self) -> None:
        """Cameras to pictures."""
        self.step = next(self.steps)
        drawn = self.of.draws.views(self.step)
        self.rendering, self.condition = render_views(self.of.scene, drawn, views=self.of.views)

    def encode(self) -> None:
        """Pictures to latents."""
        self.x = self.of.prior.encode_image(self.rendering.color.permute(0, 3, 1, 2))

    def predict(self) -> None:
        """Noise, the prior's answers and the gradient that they make."""
        config, step = self.of.config, self.step
        t, noise = self.of.draws.noise(step, tuple(self.x.shape))
        words = self.of.draws.words(step)
        stage = stage_at(step, STEPS, config.guidance.bridge_from)
        self.grad_x = guidance_gradient(
            self.of.prior, self.x.detach(), t, noise, words, self.condition, config.guidance, stage
        )

    def backward(self) -> None:
        """Through encoder and render to the parameters."""
        loss = distillation_loss(self.x, self.grad_x)
        loss = loss + regularisers(self.of.scene, self.rendering, self.of.config, self.step)
        self.of.optimiser.zero_grad()
        loss.backward()

    def optimise(self) -> None:
        """The guard's norm, what is made ready meanwhile, and the optimiser."""
        norm = nn.utils.get_total_norm([p.grad for p in self.of.optimiser.parameters if p.grad is not None])
        move = self.of.optimiser.prepared()
        self.of.draws.make_ahead(self.step + 1)
        float(norm)
        move()

    def update_occupancy(self) -> None:
        """One update of the grid, as it is after the first ones."""
        update_occupancy(self.of.scene, self.of.config, next(self.steps))


STEP_CASES: dict[str, Callable[[str], StepCase]] = {
    "step_64": lambda name: StepCase(name, 64, "blob"),
    "step_512_ball": lambda name: StepCase(name, 512, "ball"),
    "step_512_blob": lambda name: StepCase(name, 512, "blob"),
}
