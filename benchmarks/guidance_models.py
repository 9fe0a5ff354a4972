"""The priors that the guidance is timed with: published sizes, random weights, built on the device without files.

The sizes are those of the public config.json files (what is left out there is diffusers' default); `tiny` says what
differs in a trial on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from nerf_bridge.memory.ladder import RUNGS
from nerf_bridge.prior.models.codec import Codec, LatentCodec, PixelCodec, resized
from nerf_bridge.prior.models.denoisers import (
    DeepFloyd,
    Denoiser,
    Flux,
    StableDiffusion,
    StableDiffusion3,
    StableDiffusionXL,
)
from nerf_bridge.prior.models.fast_network import Compile, FastNetwork
from nerf_bridge.prior.models.frozen_encoder import FrozenEncoder
from nerf_bridge.prior.models.mvdream import MVDream
from nerf_bridge.prior.models.mvdream_unet import MVDreamUNet, read_config
from nerf_bridge.prior.models.noise import NoiseProcess, RectifiedFlow, read_process
from nerf_bridge.prior.models.prior import DiffusersPrior
from nerf_bridge.prior.models.vae_weights import encoder_of
from nerf_bridge.prior.protocol import PriorInfo, PromptEmbeddings

SD_SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "sample_size": 768,
}
WIDE_LATENTS = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
IF_BLOCKS: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 6,
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64,
    "attention_head_dim": 64,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
    "layers_per_block": 3,
    "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
}
IF_TINY: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (32, 32, 32, 32),
    "cross_attention_dim": 32,
    "encoder_hid_dim": 32,
    "attention_head_dim": 16,
    "addition_embed_type_num_heads": 2,
    "layers_per_block": 1,
}
SD_TINY = {"block_out_channels": (32, 32, 32, 32), "attention_head_dim": 2, "cross_attention_dim": 32}


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        network: settings of its network; tiny: what differs in a trial.
        vae: what differs from VAE; None: it works on pixels.
        image_size, tiny_size: pixels along a side.
        tokens, pooled: shape of an encoded prompt; 0: not pooled. A trial's are `tiny_words` wide.
        dtype: half precision that it is run in.
    """

    name: str
    network: dict[str, Any]
    tiny: dict[str, Any]
    vae: dict[str, Any] | None
    image_size: int
    tiny_size: int
    tokens: tuple[int, int]
    pooled: int
    dtype: torch.dtype


TINY_WORDS = 32
FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="sd21",
            network={
                "sample_size": 64,
                "attention_head_dim": (5, 10, 20, 20),
                "cross_attention_dim": 1024,
                "use_linear_projection": True,
            },
            tiny=SD_TINY,
            vae={},
            image_size=512,
            tiny_size=64,
            tokens=(77, 1024),
            pooled=0,
            dtype=torch.float16,
        ),
        Family(
            name="sdxl",
            network={
                "sample_size": 128,
                "block_out_channels": (320, 640, 1280),
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "transformer_layers_per_block": (1, 2, 10),
                "attention_head_dim": (5, 10, 20),
                "cross_attention_dim": 2048,
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
            tiny=SD_TINY
            | {
                "block_out_channels": (32, 32, 32),
                "transformer_layers_per_block": 1,
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 6 * 8 + TINY_WORDS,
            },
            vae={},
            image_size=1024,
            tiny_size=64,
            tokens=(77, 2048),
            pooled=1280,
            dtype=torch.float16,
        ),
        Family(
            name="if-m",
            network=IF_BLOCKS | {"block_out_channels": (192, 384, 576, 768), "cross_attention_dim": 768},
            tiny=IF_TINY,
            vae=None,
            image_size=64,
            tiny_size=16,
            tokens=(77, 4096),
            pooled=0,
            dtype=torch.float16,
        ),
        Family(
            name="if-xl",
            network=IF_BLOCKS | {"block_out_channels": (704, 1408, 2112, 2816), "cross_attention_dim": 2816},
            tiny=IF_TINY,
            vae=None,
            image_size=64,
            tiny_size=16,
            tokens=(77, 4096),
            pooled=0,
            dtype=torch.float16,
        ),
        Family(
            name="sd3",
            network={
                "sample_size": 128,
                "num_layers": 24,
                "num_attention_heads": 24,
                "attention_head_dim": 64,
                "joint_attention_dim": 4096,
                "caption_projection_dim": 1536,
                "pooled_projection_dim": 2048,
                "pos_embed_max_size": 192,
            },
            tiny={
                "sample_size": 8,
                "num_layers": 2,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "joint_attention_dim": TINY_WORDS,
                "caption_projection_dim": 32,
                "pooled_projection_dim": TINY_WORDS,
                "pos_embed_max_size": 16,
            },
            vae=WIDE_LATENTS,
            image_size=1024,
            tiny_size=64,
            tokens=(333, 4096),
            pooled=2048,
            dtype=torch.bfloat16,
        ),
        Family(
            name="flux",
            network={"guidance_embeds": False},
            tiny={
                "num_layers": 1,
                "num_single_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "joint_attention_dim": TINY_WORDS,
                "pooled_projection_dim": TINY_WORDS,
                "axes_dims_rope": (4, 4, 8),
            },
            vae=WIDE_LATENTS,
            image_size=1024,
            tiny_size=64,
            tokens=(256, 4096),
            pooled=768,
            dtype=torch.bfloat16,
        ),
        Family(
            name="mvdream",
            network={
                "image_size": 32,
                "in_channels": 4,
                "out_channels": 4,
                "model_channels": 320,
                "num_res_blocks": 2,
                "channel_mult": (1, 2, 4, 4),
                "attention_resolutions": (4, 2, 1),
                "num_head_channels": 64,
                "transformer_depth": 1,
                "context_dim": 1024,
                "camera_dim": 16,
            },
            tiny={
                "image_size": 8,
                "model_channels": 32,
                "num_res_blocks": 1,
                "channel_mult": (1, 2),
                "num_head_channels": 16,
                "context_dim": TINY_WORDS,
            },
            vae={},
            image_size=256,
            tiny_size=64,
            tokens=(77, 1024),
            pooled=0,
            dtype=torch.float16,
        ),
    )
}


@dataclass(frozen=True)
class Build:
    """Where and how large.

    Attributes:
        device: of all tensors; "meta" for counting operations.
        tiny: whether to build the trial's sizes.
    """

    device: torch.device
    tiny: bool

    def dtype(self, family: Family) -> torch.dtype:
        """Half precision on a GPU, float32 elsewhere."""
        return family.dtype if self.device.type == "cuda" else torch.float32

    def image_size(self, family: Family) -> int:
        """Pixels along a side that the family sees."""
        return family.tiny_size if self.tiny else family.image_size


class PlainCodec:
    """What people run: the autoencoder's own module in half precision, its parameters frozen, and autograd."""

    x_limit: float | None = None

    def __init__(self, vae: nn.Module, image_size: int):
        self.vae: Any = vae
        self.image_size, self.multiple = image_size, 8

    def place(self, device: torch.device, recompute: bool) -> None:
        """Move it; nothing is computed again."""
        self.vae.to(device)

    def encode(self, images: Tensor) -> Tensor:
        """Scaled mean latents."""
        pixels = (2 * resized(images, self.image_size) - 1).to(next(self.vae.parameters()).dtype)
        return self.vae.encode(pixels).latent_dist.mode().float() * self.vae.config.scaling_factor

    def decode(self, x: Tensor) -> Tensor:
        """Images in 0..1."""
        return (0.5 * self.vae.decode(x / self.vae.config.scaling_factor).sample + 0.5).clamp(0, 1)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New parameters are of `dtype`, so that the big networks are never there in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make_network(family: Family, build: Build) -> Any:
    """The family's network with random weights, frozen."""
    settings: dict[str, Any] = family.network | (family.tiny if build.tiny else {})
    classes: dict[str, Any] = {"sd3": SD3Transformer2DModel, "flux": FluxTransformer2DModel}
    with build.device, default_dtype(build.dtype(family)):
        if family.name == "mvdream":
            network: Any = MVDreamUNet(read_config(settings))
        else:
            network = classes.get(family.name, UNet2DConditionModel)(**settings)
    return network.to(build.dtype(family)).eval().requires_grad_(False)


def make_vae(family: Family, build: Build) -> Any:
    """The family's autoencoder with random weights, frozen."""
    assert family.vae is not None
    tiny = {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1} if build.tiny else {}
    with build.device, default_dtype(build.dtype(family)):
        vae = AutoencoderKL(**(VAE | family.vae | tiny))
    return vae.to(build.dtype(family)).eval().requires_grad_(False)


def our_network(network: Any, when: Compile) -> Any:
    """The network as the package runs it on a GPU; as it is elsewhere."""
    return FastNetwork(network, when) if next(network.parameters()).is_cuda else network


def our_encoder(vae: Any, graphs: bool = True) -> FrozenEncoder:
    """The encoder as the package runs it on a GPU, in float16; in the autoencoder's own precision elsewhere."""
    parameter = next(vae.parameters())
    cuda = parameter.device.type == "cuda"
    encoder, remark = encoder_of(vae, torch.float16 if cuda else parameter.dtype)
    if remark is not None:
        raise RuntimeError(remark)
    return FrozenEncoder(encoder, graphs and cuda)


def our_codec(family: Family, build: Build) -> Codec:
    """Between images and what the family noises, by the package's own code."""
    if family.vae is None:
        return PixelCodec(build.image_size(family), 8)
    vae = make_vae(family, build)
    cuda = build.device.type == "cuda"
    dtype = torch.float16 if cuda else build.dtype(family)
    return LatentCodec(vae, dtype, cuda, build.image_size(family), 8, vae.config.scaling_factor, 0.0)


def plain_codec(family: Family, build: Build) -> Codec:
    """The same by diffusers' modules."""
    if family.vae is None:
        return PixelCodec(build.image_size(family), 8)
    return PlainCodec(make_vae(family, build), build.image_size(family))


def make_denoiser(family: Family, network: Any, build: Build) -> Denoiser:
    """The package's way of calling the network."""
    if family.name == "sdxl":
        return StableDiffusionXL(network, build.image_size(family), build.device)
    makers = {"if-m": DeepFloyd, "if-xl": DeepFloyd, "sd3": StableDiffusion3, "flux": Flux, "mvdream": MVDream}
    return makers.get(family.name, StableDiffusion)(network)


def make_process(family: Family, device: torch.device) -> NoiseProcess:
    """The family's noise levels."""
    if family.name in ("sd3", "flux"):
        return RectifiedFlow(1000.0 if family.name == "sd3" else 1.0)
    return read_process(SD_SCHEDULE if family.vae is not None else {"beta_schedule": "squaredcos_cap_v2"}, device)


def random_words(family: Family, build: Build, n: int) -> PromptEmbeddings:
    """Embeddings of `n` prompts that nobody said."""
    length, width = family.tokens
    pooled = family.pooled
    if build.tiny:
        width, pooled = TINY_WORDS, min(pooled, TINY_WORDS)
    like = {"device": build.device, "dtype": build.dtype(family)}
    vector = torch.randn(n, pooled, **like) if pooled else None
    return PromptEmbeddings(
        torch.randn(n, length, width, **like),
        torch.ones(n, length, dtype=torch.bool, device=build.device),
        vector,
    )


def make_prior(family: Family, build: Build, ours: bool) -> DiffusersPrior:
    """A prior by the package's fast parts, or the same by plain eager modules, ready to be asked."""
    prior = unplaced_prior(family, build, ours, "on" if ours else "off")
    prior.place(RUNGS[0])
    return prior


def unplaced_prior(family: Family, build: Build, ours: bool, when: Compile) -> DiffusersPrior:
    """The same with its weights on the device, and nothing prepared yet."""
    codec = our_codec(family, build) if ours else plain_codec(family, build)
    denoiser = make_denoiser(family, make_network(family, build), build)

    def words(prompts: Sequence[str]) -> PromptEmbeddings:
        return random_words(family, build, len(prompts))

    info = PriorInfo(family.name, "none: random weights", "random weights", {})
    process = make_process(family, build.device)
    return DiffusersPrior(info, process, codec, denoiser, words, build.device, when)


def n_parameters(module: nn.Module) -> int:
    """Numbers in its parameters."""
    return sum(math.prod(parameter.shape) for parameter in module.parameters())
