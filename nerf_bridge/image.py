"""Text to 2D image: one image optimised by the same guidance that makes the 3D assets."""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from nerf_bridge.device import resolve_device
from nerf_bridge.errors import RunError, UserError
from nerf_bridge.guidance import (
    EncodedWords,
    draw_noise,
    draw_times,
    encode_words,
    guidance_gradient,
    stage_at,
    step_generator,
    t_max_at,
    t_min_at,
)
from nerf_bridge.image_config import ImageConfig, build_image_config
from nerf_bridge.prior import Prior, ViewCondition, check_prior_name, load_prior
from nerf_bridge.prior.designs import designs_of, with_design
from nerf_bridge.run.directory import slug
from nerf_bridge.run.files import write_json
from nerf_bridge.run.preview import save_png
from nerf_bridge.scene.cameras import orbit_cameras

__all__ = ["ImageConfig", "build_image_config", "make_image", "optimise_image"]

AZIMUTH_DEG = {"front": 0.0, "three-quarter": 40.0, "side": 90.0, "back": 180.0}
ELEVATION_DEG, DISTANCE, FOVY_DEG = 20.0, 3.0, 40.0
START_STD = 0.1  # of the noise that an image starts from, around the middle of the prior's range


def make_image(config: ImageConfig, out: Path | None = None, prior: Prior | None = None) -> Path:
    """Picture a prompt, and write the image as PNG with its settings beside it as JSON.

    Args:
        config: every setting.
        out: the PNG file; None: images/<slug>-s<seed>.png. The settings go to the same name with .json.
        prior: a prior to use in place of the one that `config.prior` names.

    Returns:
        The PNG file.

    Raises:
        UserError: unknown prior, CUDA asked for and absent, or `out` is no PNG file that can be written.
        RunError: the optimisation diverged or a file could not be written.
    """
    path = Path(out) if out is not None else Path("images") / f"{slug(config.prompt)}-s{config.seed}.png"
    device = resolve_device(config.device)
    if prior is None:
        check_prior_name(config.prior)
    _check_writable(path)
    prior = prior or load_prior(config.prior, device, config.model)
    image = optimise_image(config, prior, device)
    picture = image.repeat_interleave(config.upscale, dim=1).repeat_interleave(config.upscale, dim=2)
    try:
        save_png(path, picture.permute(1, 2, 0).cpu().numpy())
        write_json(path.with_suffix(".json"), {"settings": config.model_dump(), "prior": asdict(prior.info())})
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def optimise_image(config: ImageConfig, prior: Prior, device: torch.device) -> Tensor:
    """The image [3, s, s] in 0..1 that score distillation makes of the prompt, with a progress bar.

    What is optimised is x itself, pixels or latents, as the paper does in 2D.

    Raises:
        RunError: x is no longer finite.
    """
    one_view = prior.knows_cameras and prior.view_group == 1  # others take a single image as one without a camera
    condition = view_condition(config.view, device) if one_view else None
    prompt = with_design(config.prompt, designs_of(prior), config.model.design or 0, config.seed)
    words = encode_words(prior, prompt, config.guidance, views_known=condition is not None)
    x = _start(config, prior, device).requires_grad_()
    optimiser = torch.optim.AdamW(
        [x], lr=config.lr, betas=(0.9, 0.99), eps=config.eps, weight_decay=config.weight_decay
    )
    for step in tqdm(range(config.steps), "picturing", unit="step"):
        x.grad = image_gradient(config, prior, words, condition, x.detach(), step)
        optimiser.step()
    if not bool(x.isfinite().all()):
        raise RunError(f"the image is no longer finite after {config.steps} steps: lower lr or guidance.scale")
    with torch.no_grad():
        return prior.decode_image(x)[0].float().clamp(0, 1)


def image_gradient(
    config: ImageConfig, prior: Prior, words: EncodedWords, condition: ViewCondition | None, x: Tensor, step: int
) -> Tensor:
    """The guidance gradient of x [1, c, h, w] at `step`: a function of x and the step alone."""
    guidance = config.guidance
    t_max = t_max_at(step, config.steps, guidance)
    t = draw_times(config.seed, step, 1, t_min_at(step, config.steps, guidance), t_max).to(x.device)
    noise = draw_noise(config.seed, step, tuple(x.shape)).to(x)
    stage = stage_at(step, config.steps, guidance.bridge_from)
    return guidance_gradient(prior, x, t, noise, words, condition, guidance, stage)


def view_condition(view: str, device: torch.device) -> ViewCondition | None:
    """The camera of `view` before a white background; None for "any"."""
    if view == "any":
        return None
    azimuth = torch.tensor([math.radians(AZIMUTH_DEG[view])])
    same = torch.ones(1)
    cameras = orbit_cameras(azimuth, math.radians(ELEVATION_DEG) * same, DISTANCE * same, math.radians(FOVY_DEG) * same)
    return ViewCondition(cameras.to(device), torch.ones(1, 3, device=device))


def _start(config: ImageConfig, prior: Prior, device: torch.device) -> Tensor:
    grey = torch.full((1, 3, prior.image_size, prior.image_size), 0.5, device=device)
    with torch.no_grad():
        x = prior.encode_image(grey)
    noise = torch.randn(x.shape, generator=step_generator(config.seed, 0, "image")).to(x)
    return noise if config.start == "noise" else x + START_STD * noise


def _check_writable(path: Path) -> None:
    """Make the folder of `path`; raise UserError when `path` is no PNG name or cannot be written there."""
    if path.suffix.lower() != ".png":
        raise UserError(f"the image file must end in .png, got {path}")
    if path.is_dir():
        raise UserError(f"the image file {path} is a folder: choose another --out")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}; choose another --out") from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {path.parent}: permission denied; choose another --out")
