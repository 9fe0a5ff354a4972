"""Pictures straight from a prior (DDIM, Song et al. 2021), to see what it knows before anything is distilled.

    python -m nerf_bridge.prior.sample "a green armchair" "a red sofa" --out sheet.png

draws one row for each prompt, the camera going once around.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from nerf_bridge.guidance import classifier_free
from nerf_bridge.guidance.solver import path_end
from nerf_bridge.prior.embedded import load_embedded
from nerf_bridge.prior.protocol import Prior, PromptEmbeddings, ViewCondition
from nerf_bridge.run.preview import image_grid, save_png
from nerf_bridge.scene.cameras import turntable_cameras

FIRST_TIME = 0.98  # from which noise alone is taken for a noised image


@torch.no_grad()
def ddim_sample(
    prior: Prior,
    embeddings: PromptEmbeddings,
    null: PromptEmbeddings,
    condition: ViewCondition,
    noise: Tensor,
    steps: int = 30,
    scale: float = 3.0,
) -> Tensor:
    """Images [b, 3, h, w] in 0..1 for b prompts and views, deterministically from `noise` [b, c, h', w'].

    Args:
        null: the empty prompt, one row; its camera stays known.
        scale: classifier-free guidance, uncond + scale * (text - uncond).
    """
    b = len(noise)
    both = PromptEmbeddings.cat([embeddings, null.repeat(b)])

    def predict(points: Tensor, times: Tensor) -> Tensor:
        predicted = prior.predict_noise(points.repeat(2, 1, 1, 1), times.repeat(2), both, condition.repeat(2))
        text, uncond = predicted.chunk(2)
        return classifier_free(text, uncond, scale)

    begin = torch.full((b,), FIRST_TIME, device=noise.device)
    return prior.decode_image(path_end(prior, [predict] * steps, noise, begin))


def sample_sheet(prior: Prior, prompts: list[str], views: int, scale: float, seed: int, device: torch.device) -> Tensor:
    """Images [prompts * views, 3, h, w]: each prompt from `views` azimuths at 15 degrees of elevation, on white."""
    cameras = turntable_cameras(views, math.radians(15), 3.0, math.radians(40)).to(device)
    condition = ViewCondition(cameras, torch.ones(views, 3, device=device), together=views)
    null = prior.encode_prompts([""])
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for prompt in tqdm(prompts, "sampling"):
        noise = torch.randn(views, 3, prior.image_size, prior.image_size, generator=generator).to(device)
        words = prior.encode_prompts([prompt]).repeat(views)
        rows.append(ddim_sample(prior, words, null, condition, noise, scale=scale))
    return torch.cat(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--weights", type=Path, help="folder of weights; default: the package's own")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--scale", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prior = load_embedded(device, arguments.weights)
    images = sample_sheet(prior, arguments.prompts, arguments.views, arguments.scale, arguments.seed, device)
    save_png(arguments.out, image_grid(images.permute(0, 2, 3, 1).cpu().numpy(), arguments.views))


if __name__ == "__main__":
    main()
