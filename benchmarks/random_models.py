"""Stable Diffusion 2.1 base with random weights, as a folder in diffusers' format."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.guidance_models import FAMILIES, VAE

CHANNELS = (320, 640, 1280, 1280)  # diffusers' default
WORDS_LAYERS, VOCABULARY = 23, 49408
NORM_GROUPS, HEAD = 32, 64
STD = 0.02  # of the weights; small, so that half precision does not overflow


def write_stable_diffusion(folder: Path, device: torch.device, shrink: int = 1) -> Path:
    """Write the pipeline into `folder`, in half precision; made on `device`, where that is quicker.

    Args:
        shrink: all widths and the latents' side so many times smaller, as far as the norms' groups allow.

    Returns:
        The folder.
    """
    channels, vae_channels = (_narrow(widths, shrink) for widths in (CHANNELS, VAE["block_out_channels"]))
    sd21 = FAMILIES["sd21"]
    width = max(sd21.tokens[1] // shrink, HEAD)
    narrow = {
        "sample_size": max(sd21.network["sample_size"] // shrink, 16),
        "block_out_channels": channels,
        "attention_head_dim": tuple(max(c // HEAD, 1) for c in channels),
        "cross_attention_dim": width,
    }
    narrow_vae = {"block_out_channels": vae_channels, "sample_size": sd21.image_size // shrink}
    with device:
        unet = UNet2DConditionModel(**(sd21.network | narrow))
        vae = AutoencoderKL(**(VAE | narrow_vae))
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=VOCABULARY,
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=max(WORDS_LAYERS // shrink, 1),
                num_attention_heads=width // HEAD,
                projection_dim=width // 2,
                hidden_act="gelu",
            )
        )
    StableDiffusionPipeline(
        unet=_random(unet),
        vae=_random(vae),
        text_encoder=_random(text),
        tokenizer=_tokenizer(folder),
        scheduler=DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def _narrow(widths: tuple[int, ...], shrink: int) -> tuple[int, ...]:
    return tuple(max(width // shrink // NORM_GROUPS, 1) * NORM_GROUPS for width in widths)


@torch.no_grad()
def _random(network: nn.Module) -> nn.Module:
    """`network` on the CPU in half precision, its matrices drawn anew."""
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=STD)
    return network.half().cpu()


def _tokenizer(folder: Path) -> CLIPTokenizer:
    """Letters, each alone and at the end of a word."""
    place = folder / "tokenizer"
    place.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *[f"{letter}</w>" for letter in letters], "<|startoftext|>", "<|endoftext|>"]
    (place / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    (place / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, "pad_token": "<|endoftext|>"}))
    return CLIPTokenizer.from_pretrained(place)
