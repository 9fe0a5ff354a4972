"""The networks of the families behind one call: noised x, time, words and views to the network's answer.

Each holds its network in `network`, which may be replaced by a faster one with the same call.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from nerf_bridge.prior.protocol import PromptEmbeddings, ViewCondition

PLAIN_GUIDANCE = 1.0  # a guidance-distilled network is asked for its plain prediction; the scale is guidance.scale


class Denoiser(Protocol):
    """A network that answers noised x; its answer is epsilon, v or a velocity, which a NoiseProcess knows.

    It is told the time as it is: in half precision 777.7 would be 776.
    """

    network: Any
    knows_cameras: bool
    view_group: int

    def __call__(
        self, noised: Tensor, time: Tensor, embeddings: PromptEmbeddings, condition: ViewCondition | None
    ) -> Tensor:
        """The answer [b, c, h, w] in the network's dtype, for b noised x, network times, prompts and views."""
        ...


class StableDiffusion:
    """The U-Net of SD 1.5 and 2.1 (Rombach et al. 2022)."""

    knows_cameras, view_group = False, 1

    def __init__(self, network: Any):
        self.network = network

    def __call__(
        self, noised: Tensor, time: Tensor, embeddings: PromptEmbeddings, condition: ViewCondition | None
    ) -> Tensor:
        dtype = self.network.dtype
        return self.network(noised.to(dtype), time, encoder_hidden_states=embeddings.tokens.to(dtype)).sample


class StableDiffusionXL:
    """The U-Net of SDXL (Podell et al. 2023), told the size and crop of a picture: all of it, at `told_size`."""

    knows_cameras, view_group = False, 1

    def __init__(self, network: Any, told_size: int, device: torch.device):
        self.network = network
        told = (told_size, told_size, 0, 0, told_size, told_size)
        self.size_and_crop = torch.tensor(told, dtype=network.dtype, device=device)

    def __call__(
        self, noised: Tensor, time: Tensor, embeddings: PromptEmbeddings, condition: ViewCondition | None
    ) -> Tensor:
        assert embeddings.pooled is not None, "SDXL wants pooled prompts"
        dtype = self.network.dtype
        added = {"text_embeds": embeddings.pooled.to(dtype), "time_ids": self.size_and_crop.repeat(len(noised), 1)}
        tokens = embeddings.tokens.to(dtype)
        return self.network(noised.to(dtype), time, encoder_hidden_states=tokens, added_cond_kwargs=added).sample


class DeepFloyd:
    """The U-Net of DeepFloyd IF's stage I: of its 6 channels the first 3 are the noise, the others a variance."""

    knows_cameras, view_group = False, 1

    def __init__(self, network: Any):
        self.network = network

    def __call__(
        self, noised: Tensor, time: Tensor, embeddings: PromptEmbeddings, condition: ViewCondition | None
    ) -> Tensor:
        dtype = self.network.dtype
        answer = self.network(noised.to(dtype), time, encoder_hidden_states=embeddings.tokens.to(dtype)).sample
        return answer[:, : noised.shape[1]]


class StableDiffusion3:
    """The transformer of SD3 and SD3.5 (Esser et al. 2024)."""

    knows_cameras, view_group = False, 1

    def __init__(self, network: Any):
        self.network = network

    def __call__(
        self, noised: Tensor, time: Tensor, embeddings: PromptEmbeddings, condition: ViewCondition | None
    ) -> Tensor:
        assert embeddings.pooled is not None, "SD3 wants pooled prompts"
        dtype = self.network.dtype
        return self.network(
            hidden_states=noised.to(dtype),
            timestep=time,
            encoder_hidden_states=embeddings.tokens.to(dtype),
            pooled_projections=embeddings.pooled.to(dtype),
        ).sample


class Flux:
    """The transformer of FLUX.1, which sees latents as a row of 2 x 2 patches with their places."""

    knows_cameras, view_group = False, 1

    def __init__(self, network: Any):
        self.network = network

    def __call__(
        self, noised: Tensor, time: Tensor, embeddings: PromptEmbeddings, condition: ViewCondition | None
    ) -> Tensor:
        assert embeddings.pooled is not None, "FLUX wants pooled prompts"
        dtype, (b, _, h, w) = self.network.dtype, noised.shape
        tokens = embeddings.tokens.to(dtype)
        distilled = self.network.config.guidance_embeds
        answer = self.network(
            hidden_states=to_patches(noised.to(dtype)),
            timestep=time,
            guidance=torch.full((b,), PLAIN_GUIDANCE, dtype=dtype, device=noised.device) if distilled else None,
            pooled_projections=embeddings.pooled.to(dtype),
            encoder_hidden_states=tokens,
            txt_ids=torch.zeros(tokens.shape[1], 3, dtype=dtype, device=noised.device),
            img_ids=patch_places(h // 2, w // 2, noised.device).to(dtype),
        ).sample
        return from_patches(answer, h, w)


def to_patches(x: Tensor) -> Tensor:
    """[b, c, h, w] as rows of 2 x 2 patches, [b, h * w / 4, 4 * c], channel by channel."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def from_patches(rows: Tensor, h: int, w: int) -> Tensor:
    """The inverse of to_patches, for x of height `h` and width `w`."""
    b, _, channels = rows.shape
    return rows.view(b, h // 2, w // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, channels // 4, h, w)


def patch_places(rows: int, columns: int, device: torch.device) -> Tensor:
    """(0, row, column) of each patch, [rows * columns, 3]."""
    row, column = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], -1).view(-1, 3)
