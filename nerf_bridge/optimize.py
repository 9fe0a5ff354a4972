"""The optimisation loop: cameras -> render -> guidance gradient -> optimiser, with checkpoints, guards and previews.

Every draw is a function of (seed, step, purpose), so a run that resumes at a step does what an unbroken one does.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from nerf_bridge.config import GenerateConfig
from nerf_bridge.draws import Draws, ViewDraws
from nerf_bridge.errors import Interrupted
from nerf_bridge.graphed_render import GraphedRender
from nerf_bridge.guidance import (
    Answer,
    EncodedWords,
    distillation_loss,
    guidance_gradient,
    is_refreshed_at,
    pull,
    rate_at,
    stage_at,
    step_generator,
)
from nerf_bridge.memory.descent import OutOfMemory, attempt, descend, give_back_unused, settle, tried
from nerf_bridge.memory.ladder import LAST_EQUAL, RUNGS, parts_of
from nerf_bridge.ops.adam import SkippingAdam
from nerf_bridge.prior.protocol import Prior, ViewCondition, kept_together
from nerf_bridge.regularisers import regularisers
from nerf_bridge.render import Rendering, render_in_chunks
from nerf_bridge.run.directory import RunDirectory
from nerf_bridge.run.events import EventLog
from nerf_bridge.run.health import Action, EmptyGuard, judge_opacity, judge_step
from nerf_bridge.run.preview import image_grid, save_png
from nerf_bridge.run.state import Progress, build_optimiser, load_tensors, restore, save, scene_tensors
from nerf_bridge.run.stop_signals import stop_signals
from nerf_bridge.scene.cameras import turntable_cameras
from nerf_bridge.scene.scene import Scene, build_scene

logger = logging.getLogger(__name__)

PROGRESS_EVERY = 10
PREVIEW_SIZE = 128
EMPTY_PATIENCE = 50  # steps that a scene may stay empty
ALL = slice(None)


@dataclass(frozen=True)
class Health:
    """Figures of one step: mean opacity of the views, norm of the gradient, whether all of it is finite."""

    opacity: float
    gradient_norm: float
    finite: bool


def optimise(
    run: RunDirectory,
    config: GenerateConfig,
    scene: Scene,
    prior: Prior,
    words: EncodedWords,
    log: EventLog,
    rung: int = 0,
) -> Progress:
    """Run the loop to its end, from the checkpoint of `run` when there is one; the last state is checkpointed.

    Args:
        rung: of the memory ladder, at least; a run that resumes is never above its checkpoint's.

    Returns:
        Where it stands at the end.

    Raises:
        UserError: the checkpoint is damaged.
        RunError: the scene stayed empty, the gradients not finite, or memory ran out below the last rung.
        Interrupted: the user asked to stop; the state is saved.
    """
    optimiser = build_optimiser(scene, config)
    progress = restore(run, scene, optimiser) or Progress()
    progress = replace(progress, rung=max(rung, progress.rung))
    progress = settle(run, scene, optimiser, prior, config, progress, log)
    views, draws = view_renderer(scene, progress.rung), Draws(config, words, prior.view_group, scene.device)
    if progress.step:
        log.append("resumed", "optimise", progress.step, config.steps)
    bar = tqdm(total=config.steps, initial=progress.step, desc="optimising", unit="step")
    with stop_signals() as stopped, bar:
        while progress.step < config.steps:
            work = functools.partial(training_step, scene, optimiser, prior, draws, config, progress, views)
            refreshes = is_refreshed_at(progress.step, config.steps, config.occupancy)
            health = attempt(work, scene, optimiser, refreshes)
            if isinstance(health, OutOfMemory):
                if views.give_up("memory ran out"):  # what the graphs held may be enough for the same rung
                    give_back_unused()
                else:
                    progress = descend(run, scene, optimiser, prior, config, progress, health, log)
                continue
            progress = after_step(run, scene, optimiser, config, progress, health, log)
            bar.update(progress.step - bar.n)
            bar.set_postfix(opacity=f"{health.opacity:.2f}", grad=f"{health.gradient_norm:.1e}", refresh=False)
            report_step(scene, config, progress, health, log)
            if progress.step % config.preview_every == 0 or progress.step == config.steps:
                progress = draw_preview(run, scene, optimiser, prior, config, progress, views, log)
            done = progress.step == config.steps
            if done or stopped.is_set() or (progress.guard.good and progress.step % config.checkpoint_every == 0):
                save(run, scene, optimiser, config, progress)
                log.append("checkpoint", "optimise", progress.step, config.steps)
            if stopped.is_set():
                log.append("interrupted", "optimise", progress.step, config.steps)
                raise Interrupted(f"stopped at step {progress.step} of {config.steps}; the same command goes on")
    return progress


def training_step(
    scene: Scene,
    optimiser: SkippingAdam,
    prior: Prior,
    draws: Draws,
    config: GenerateConfig,
    progress: Progress,
    views: GraphedRender | None = None,
) -> Health:
    """One step: render views, ask the prior, and move the field unless a gradient is not finite.

    With several inner steps the same views are rendered again after each, and the field is moved on towards the same
    answer, which costs a rendering and not a call of the prior. Where one fails, those before it stay.

    Args:
        draws: what the steps of the run draw; that of the next one is made while the device works at this one.
        views: what renders them; the same one at every step of a run. None: one that uses no CUDA graphs.

    Returns:
        The figures of the last inner step.
    """
    step = progress.step
    views = views or GraphedRender(scene, enabled=False)
    if is_refreshed_at(step, config.steps, config.occupancy):
        update_occupancy(scene, config, step)
        views.forget_counts()
    for group, lr in zip(optimiser.param_groups, (config.optim.lr_grid, config.optim.lr_decoder), strict=True):
        group["lr"] = lr * rate_at(step, config.steps, config.optim.lr_final) * progress.guard.rate
    answers: list[Answer] | None = None
    health = Health(0.0, 0.0, True)
    for _ in range(config.optim.inner_steps):
        health, answers = inner_step(scene, optimiser, prior, draws, config, progress, views, answers)
        if not health.finite:
            break
    return health


def inner_step(
    scene: Scene,
    optimiser: SkippingAdam,
    prior: Prior,
    draws: Draws,
    config: GenerateConfig,
    progress: Progress,
    views: GraphedRender,
    answers: list[Answer] | None,
) -> tuple[Health, list[Answer]]:
    """Move the field once, unless a gradient is not finite; the arguments are those of `gradients`.

    While the device works, all is made ready that comes after it; then the host waits for it, once.
    """
    for plain in (False, True):
        if plain:
            views.forget_counts()  # the graph had too little room: once more without
        found = gradients(scene, optimiser, prior, draws, config, progress, views, answers)
        move = optimiser.prepared()
        draws.make_ahead(progress.step + 1)
        health, lacked_room = found.seen()
        if not lacked_room:
            if health.finite:
                move()
            return health, found.answers
        del found, move  # the second try wants their memory
    raise AssertionError("a plain rendering has room for all samples")


@dataclass(frozen=True)
class Gradients:
    """What is known of the gradients that lie in the parameters.

    Attributes:
        figures: mean opacity of the views, norm of the gradient, and 1 for each rendering that lacked room, [2 + n].
        answers: of the prior to the parts of the step.
    """

    figures: Tensor
    answers: list[Answer]

    def seen(self) -> tuple[Health, bool]:
        """The figures, and whether a rendering lacked samples, so that the gradients are of no use; on a GPU the host
        waits for it here."""
        opacity, norm, *lacking = self.figures.tolist()
        return Health(opacity, norm, math.isfinite(norm)), any(lacking)


def gradients(
    scene: Scene,
    optimiser: SkippingAdam,
    prior: Prior,
    draws: Draws,
    config: GenerateConfig,
    progress: Progress,
    views: GraphedRender,
    answers: list[Answer] | None = None,
) -> Gradients:
    """Put the gradients of a step into the parameters.

    The host waits for the device where views are rendered plainly, for the number of their samples, and nowhere else.

    Args:
        answers: of the prior to the parts of the step; None: it is asked.
    """
    optimiser.zero_grad()
    n_views = config.camera.views
    parts = parts_of(n_views, kept_together(prior, n_views), RUNGS[progress.rung])
    kept: Sequence[Answer | None] = answers or [None] * len(parts)
    found = [
        backward(scene, prior, draws, config, progress, part, views, answer)
        for part, answer in zip(parts, kept, strict=True)
    ]
    norm = nn.utils.get_total_norm([p.grad for p in optimiser.parameters if p.grad is not None])
    opacity = torch.cat([seen for seen, _, _ in found]).mean()
    overflow = [lacks.to(norm.dtype) for _, lacks, _ in found if lacks is not None]
    return Gradients(torch.stack([opacity, norm, *overflow]), [answer for _, _, answer in found])


def backward(
    scene: Scene,
    prior: Prior,
    draws: Draws,
    config: GenerateConfig,
    progress: Progress,
    part: slice,
    views: GraphedRender,
    answer: Answer | None = None,
) -> tuple[Tensor, Tensor | None, Answer]:
    """Add the gradient of the views `part` of a step, which draw what they do when all are done at once.

    Args:
        answer: of the prior to these views, from an earlier inner step; None: it is asked.

    Returns:
        The opacity of their pixels [n], the rendering's `overflow`, and the answer: all else of the rendering is given
        back, since the parts are there to save memory.
    """
    step, samples_at_once = progress.step, RUNGS[progress.rung].samples_at_once
    rendering, condition = render_views(scene, draws.views(step), part, samples_at_once, views)
    x = prior.encode_image(rendering.color.permute(0, 3, 1, 2))
    answer = answer or ask(prior, draws, x.detach(), condition, config, step, part)
    loss = distillation_loss(x, answer.gradient_at(x.detach())) + regularisers(scene, rendering, config, step)
    (len(x) / config.camera.views * loss).backward()
    return rendering.opacity.detach().flatten(), rendering.overflow, answer


def ask(
    prior: Prior,
    draws: Draws,
    x: Tensor,
    condition: ViewCondition,
    config: GenerateConfig,
    step: int,
    part: slice,
) -> Answer:
    """What the prior says of the encoded views `part` of a step, at times and with noise as the step draws them."""
    t, noise = (drawn[part] for drawn in draws.noise(step, (config.camera.views, *x.shape[1:])))
    words = draws.words(step) if len(x) == config.camera.views else draws.encoded
    stage = stage_at(step, config.steps, config.guidance.bridge_from)
    grad_x = guidance_gradient(prior, x, t, noise, words, condition, config.guidance, stage)
    return Answer(x, grad_x, pull(prior, t, config.guidance, stage))


def view_renderer(scene: Scene, rung: int) -> GraphedRender:
    """What renders the training views of a run: with CUDA graphs where our kernels run, nothing exact is asked, and
    memory is not short."""
    exact = torch.are_deterministic_algorithms_enabled()
    return GraphedRender(scene, scene.backend == "cuda" and not exact and rung == 0)


def update_occupancy(scene: Scene, config: GenerateConfig, step: int) -> None:
    """Look again at which cells hold something."""
    settings, draws = config.occupancy, step_generator(config.seed, step, "occupancy")
    scene.occupancy.update(scene.field, scene.step_size, settings.decay, settings.threshold, draws)


def render_views(
    scene: Scene,
    drawn: ViewDraws,
    part: slice = ALL,
    samples_at_once: int | None = None,
    views: GraphedRender | None = None,
) -> tuple[Rendering, ViewCondition]:
    """The views `part` of those `drawn` for a step, and what the prior is told of them.

    `views` renders them; None: one that uses no CUDA graphs.
    """
    cameras, packed, jitter = drawn.cameras[part], drawn.packed[part], drawn.jitter[part].flatten()
    light, background = (None if each is None else each[part] for each in (drawn.light_dir, drawn.background))
    views = views or GraphedRender(scene, enabled=False)
    rendering, told = views(packed, drawn.size, background, drawn.shading, light, jitter, samples_at_once)
    return rendering, ViewCondition(cameras, told, together=len(cameras))


def after_step(
    run: RunDirectory,
    scene: Scene,
    optimiser: SkippingAdam,
    config: GenerateConfig,
    progress: Progress,
    health: Health,
    log: EventLog,
) -> Progress:
    """Where the run stands after a step: one further, or back at the last good state at a lower rate."""
    guard, action = judge_step(progress.guard, health.finite)
    if not health.finite:
        log.append("skipped", "optimise", progress.step + 1, config.steps, {"skipped": guard.skipped})
    if action is Action.RESTORE:
        restored = restore(run, scene, optimiser)
        if restored is None:
            fresh = build_scene(config, scene.backend, scene.device)
            load_tensors(scene, optimiser, scene_tensors(fresh, build_optimiser(fresh, config)))
        step = restored.step if restored else 0
        log.append("restored", "optimise", step, config.steps, {"rate": guard.rate, "restores": guard.restores})
        return Progress(step, guard, EmptyGuard(), progress.rung)
    empty = judge_opacity(progress.empty, progress.step, health.opacity, EMPTY_PATIENCE)
    return Progress(progress.step + 1, guard, empty, progress.rung)


def report_step(scene: Scene, config: GenerateConfig, progress: Progress, health: Health, log: EventLog) -> None:
    """Write an event every few steps."""
    step = progress.step
    if step % PROGRESS_EVERY == 0 or step == config.steps:
        figures = asdict(health) | {"occupied": scene.occupancy.occupied_fraction}
        log.append("progress", "optimise", step, config.steps, figures)


def draw_preview(
    run: RunDirectory,
    scene: Scene,
    optimiser: SkippingAdam,
    prior: Prior,
    config: GenerateConfig,
    progress: Progress,
    views: GraphedRender,
    log: EventLog,
) -> Progress:
    """Write a preview picture; where the run stands after it.

    Where memory runs out, the views' graphs are given up, then the run goes one rung down, then there is no picture:
    none is worth several rungs, nor the last one, which makes another result.
    """
    draw = functools.partial(preview_image, scene, config)
    picture = tried(draw)
    if isinstance(picture, OutOfMemory):
        optimiser.zero_grad()  # the gradients of a step that is done
        if views.give_up("memory ran out"):
            give_back_unused()
            picture = tried(draw)
    if isinstance(picture, OutOfMemory) and progress.rung < LAST_EQUAL:
        progress = descend(run, scene, optimiser, prior, config, progress, picture, log)
        picture = tried(draw)
    if isinstance(picture, OutOfMemory):
        logger.warning("out of memory at step %d (%s): no preview picture of it", progress.step, picture.reason)
        return progress
    save_png(run.preview_at(progress.step), picture)
    log.append("preview", "optimise", progress.step, config.steps)
    return progress


def preview_image(scene: Scene, config: GenerateConfig) -> np.ndarray:
    """Four views around the object in a row, [h, 4 w, 3] in 0..1."""
    camera = config.camera
    distance = 0.5 * (camera.distance_min + camera.distance_max)
    fovy = math.radians(0.5 * (camera.fovy_min_deg + camera.fovy_max_deg))
    cameras = turntable_cameras(4, math.radians(15), distance, fovy).to(scene.device)
    white = torch.ones(4, 3, device=scene.device)
    pictures = render_in_chunks(
        scene.field, scene.occupancy.occupied, cameras, PREVIEW_SIZE, white, scene.step_size, scene.backend
    )
    return image_grid(pictures.color.cpu().numpy(), 4)
