"""Refinement of the texture alone, the mesh being fixed, by the guidance that made the field.

Render the mesh -> noise -> ask the prior -> gradient -> texture. Every draw is a function of (seed, step), the steps
counted on from those of the field, and nothing is kept between runs: a run that was stopped does it again the same way.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from nerf_bridge.config import GenerateConfig
from nerf_bridge.draws import draw_background
from nerf_bridge.guidance import (
    EncodedWords,
    distillation_loss,
    draw_noise,
    draw_times,
    guidance_gradient,
    stage_at,
    step_generator,
)
from nerf_bridge.mesh.bake import nearest_covered
from nerf_bridge.mesh.data import UnwrappedMesh
from nerf_bridge.ops.raster import rasterize_uv
from nerf_bridge.prior.protocol import Prior, ViewCondition
from nerf_bridge.scene.background import backgrounds
from nerf_bridge.scene.cameras import Cameras, sample_cameras
from nerf_bridge.scene.mesh_render import ColoredMesh, Texture, shade_mesh
from nerf_bridge.scene.scene import Scene
from nerf_bridge.scene.shading import draw_light_directions, shading_at

logger = logging.getLogger(__name__)

WORKING_SIZE = 512
"""Texels along a side of what is optimised: the views are too small to tell more, and the gaps between the charts are
still two texels wide. The difference is added to the texture in its full size."""
SUPERSAMPLE = 4
"""Samples across a pixel of a view: its silhouettes are antialiased and most texels in view are met at every step."""
LEARNING_RATE = 0.003
"""Colour steps of Adam, whatever the gradient's size: 300 of them can go from grey to most colours. The embedded prior
puts a grain on plain surfaces, the more of it the further a texture goes."""
FINAL_RATE = 0.2
"""Of the learning rate, at the last step."""


@dataclass(frozen=True)
class Guide:
    """What tells the texture where to go: prior, prompts, settings, and the scene whose background is behind it."""

    prior: Prior
    words: EncodedWords
    config: GenerateConfig
    scene: Scene


def refine_texture(
    mesh: UnwrappedMesh,
    base_color: np.ndarray,
    on_progress: Callable[[float], None] | None,
    guide: Guide,
) -> np.ndarray:
    """The base colour after `config.mesh.refine_steps` steps of the guidance, whose stages share them as usual.

    Noise times go up to `guidance.t_max_end`, as at the end of the field's own optimisation. Where that was done under
    light, the views are lit too, so that the texture stays an albedo. What no camera sees stays as it was.

    Args:
        mesh: in the world's axes and the box's units.
        base_color: [h, h, 3] uint8, row 0 at v = 1.
        on_progress: called with the fraction done.
        guide: decides everything else; its scene's device and backend do the work.

    Returns:
        [h, h, 3] uint8. The same for the same arguments; on CUDA but for the last bits of float sums.
    """
    device, n_steps = guide.scene.device, guide.config.mesh.refine_steps
    base = torch.as_tensor(base_color, device=device).permute(2, 0, 1)[None].float() / 255.0
    working = min(WORKING_SIZE, base_color.shape[0])
    start = interpolate(base, (working, working), mode="area")[0].permute(1, 2, 0).contiguous()
    texture = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([texture], lr=LEARNING_RATE, betas=(0.9, 0.99), eps=1e-15)
    vertices, uv = (torch.as_tensor(array, device=device).float() for array in (mesh.vertices, mesh.uv))
    faces = torch.as_tensor(mesh.faces, device=device)
    skipped = 0
    for step in range(n_steps):
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * FINAL_RATE ** (step / n_steps)
        optimiser.zero_grad()
        view_loss(ColoredMesh(vertices, faces, Texture(uv, texture)), guide, step).backward()
        assert texture.grad is not None
        if math.isfinite(float(texture.grad.sum())):
            optimiser.step()
            texture.data.clamp_(0.0, 1.0)
        else:
            skipped += 1
        if on_progress is not None:
            on_progress((step + 1) / n_steps)
    if skipped:
        logger.warning("the prior's gradient was not finite at %d of %d steps of refinement", skipped, n_steps)
    return add_difference(mesh, base, texture.detach() - start, guide.scene.backend)


def view_loss(textured: ColoredMesh, guide: Guide, step: int) -> Tensor:
    """A scalar whose gradient is the guidance's for the views of a step of the refinement, from 0."""
    config, prior, scene = guide.config, guide.prior, guide.scene
    stage = stage_at(step, config.mesh.refine_steps, config.guidance.bridge_from)
    step += config.steps  # other draws than those of the field's steps
    group, draws = prior.view_group, step_generator(config.seed, step, "cameras")
    cameras = sample_cameras(config.camera, draws, group).to(scene.device)
    solid = draw_background(config, step)
    solid = None if solid is None else solid.to(scene.device)
    with torch.no_grad():
        behind, told = backgrounds(scene.environment, cameras, config.render.size, scene.backend, solid)
    light = light_of(cameras, config, step)
    images, _ = shade_mesh(textured, cameras, config.render.size, scene.backend, behind, SUPERSAMPLE, light_dir=light)
    x = prior.encode_image(images.permute(0, 3, 1, 2))
    guidance = config.guidance
    times = draw_times(config.seed, step, len(x) // group, guidance.t_min_last, guidance.t_max_end)
    t = times.repeat_interleave(group).to(x.device)
    noise = draw_noise(config.seed, step, tuple(x.shape)).to(x.device)
    condition = ViewCondition(cameras, told, together=len(cameras))
    grad_x = guidance_gradient(prior, x.detach(), t, noise, guide.words, condition, config.guidance, stage)
    return distillation_loss(x, grad_x)


def light_of(cameras: Cameras, config: GenerateConfig, step: int) -> Tensor | None:
    """Directions [b, 3] to the lights of a step; None for plain albedo. A textureless view would teach nothing."""
    if shading_at(config.render.shading, config.seed, step) == "albedo":
        return None
    return draw_light_directions(cameras, step_generator(config.seed, step, "light"))


def add_difference(mesh: UnwrappedMesh, base: Tensor, difference: Tensor, backend: str) -> np.ndarray:
    """[h, h, 3] uint8: `base` [1, 3, h, h] plus the enlarged `difference` [r, r, 3], carried on between the charts."""
    size = base.shape[-1]
    enlarged = interpolate(difference.permute(2, 0, 1)[None], (size, size), mode="bilinear", align_corners=False)
    changed = ((base + enlarged).clamp(0.0, 1.0) * 255.0).round().byte()[0].permute(1, 2, 0)
    uv, faces = (torch.as_tensor(array, device=base.device) for array in (mesh.uv, mesh.faces))
    covered = rasterize_uv(uv, faces, size, backend).covered
    return changed.cpu().numpy()[nearest_covered(covered.cpu().numpy())]
