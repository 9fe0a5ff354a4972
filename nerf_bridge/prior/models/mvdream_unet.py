"""The U-Net of MVDream (Shi et al. 2023): Stable Diffusion's, whose self-attention runs over all views of a group.

Our own code; the names of the parameters are those of the published weights, so that these load as they are. Shapes:
b = groups * views images, in the order of the groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CAMERA_NUMBERS = 16  # a camera-to-world matrix, row by row
GROUPS = 32  # of the group norms


@dataclass(frozen=True)
class MVDreamConfig:
    """Sizes, with the names of the published config.json.

    Attributes:
        image_size: latents along a side.
        num_head_channels: width of an attention head.
        attention_resolutions: by how much a level is scaled down where there is attention.
        context_dim: width of the prompt's tokens.
    """

    image_size: int
    in_channels: int
    out_channels: int
    model_channels: int
    num_res_blocks: int
    channel_mult: tuple[int, ...]
    attention_resolutions: tuple[int, ...]
    num_head_channels: int
    transformer_depth: int
    context_dim: int
    camera_dim: int

    def __post_init__(self) -> None:
        if self.camera_dim != CAMERA_NUMBERS:
            raise ValueError(f"camera_dim is {self.camera_dim}, expected {CAMERA_NUMBERS}")


class MVDreamUNet(nn.Module):
    """Noise prediction for groups of views."""

    def __init__(self, config: MVDreamConfig):
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        width, deep = config.model_channels, 4 * config.model_channels
        self.time_embed = nn.Sequential(nn.Linear(width, deep), nn.SiLU(), nn.Linear(deep, deep))
        self.camera_embed = nn.Sequential(nn.Linear(config.camera_dim, deep), nn.SiLU(), nn.Linear(deep, deep))
        self.input_blocks = nn.ModuleList([Stage([nn.Conv2d(config.in_channels, width, 3, padding=1)])])
        skips, channels = [width], width
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(_stage(config, channels, mult * width, level))
                channels = mult * width
                skips.append(channels)
            if level < len(config.channel_mult) - 1:
                self.input_blocks.append(Stage([Downsample(channels)]))
                skips.append(channels)
        first, last = (ResBlock(channels, channels, deep) for _ in range(2))
        self.middle_block = Stage([first, Transformer(channels, config), last])
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for i in range(config.num_res_blocks + 1):
                stage = _stage(config, channels + skips.pop(), mult * width, level)
                channels = mult * width
                if level and i == config.num_res_blocks:
                    stage.append(Upsample(channels))
                self.output_blocks.append(stage)
        answer = nn.Conv2d(channels, config.out_channels, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, channels), nn.SiLU(), answer)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.parameters()).dtype

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor, camera: Tensor | None, views: int) -> Tensor:
        """Predict the noise.

        Args:
            x: noised latents [b, c, h, w], group after group.
            time: training step of each, [b].
            tokens: prompts [b, length, context_dim].
            camera: matrices [b, 16], zeros where unknown; None: a plain picture, of which the views are no part.
            views: views in a group; b is a multiple.
        """
        embedding = self.time_embed(time_features(time, self.config.model_channels).to(x.dtype))
        if camera is not None:
            embedding = embedding + self.camera_embed(camera)
        skips: list[Tensor] = []
        for stage in self.input_blocks:
            x = stage(x, embedding, tokens, views)
            skips.append(x)
        x = self.middle_block(x, embedding, tokens, views)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], 1), embedding, tokens, views)
        return self.out(x)


class Stage(nn.ModuleList):
    """Modules one after the other, each given what it wants of the embedding, the words and the group."""

    def forward(self, x: Tensor, embedding: Tensor, tokens: Tensor, views: int) -> Tensor:
        for module in self:
            if isinstance(module, ResBlock):
                x = module(x, embedding)
            elif isinstance(module, Transformer):
                x = module(x, tokens, views)
            else:
                x = module(x)
        return x


class ResBlock(nn.Module):
    """Two convolutions with the time added between them."""

    def __init__(self, channels: int, out_channels: int, embedding: int):
        super().__init__()
        first = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, channels), nn.SiLU(), first)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out_channels))
        second = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(GROUPS, out_channels), nn.SiLU(), nn.Identity(), second)
        same = out_channels == channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(embedding)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Transformer(nn.Module):
    """Attention over all pixels of all views of a group, then over the words."""

    def __init__(self, channels: int, config: MVDreamConfig):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        blocks = [Block(channels, config) for _ in range(config.transformer_depth)]
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, tokens: Tensor, views: int) -> Tensor:
        height = x.shape[2]
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            h = block(h, tokens, views)
        return x + self.proj_out(h).transpose(1, 2).unflatten(2, (height, -1))


class Block(nn.Module):
    """Self-attention across the group, attention to the words, and a gated MLP."""

    def __init__(self, dim: int, config: MVDreamConfig):
        super().__init__()
        heads = dim // config.num_head_channels
        self.attn1 = Attention(dim, dim, heads)
        self.attn2 = Attention(dim, config.context_dim, heads)
        self.ff = GatedMLP(dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))

    def forward(self, x: Tensor, tokens: Tensor, views: int) -> Tensor:
        pixels = x.shape[1]
        group = self.norm1(x).reshape(-1, views * pixels, x.shape[2])
        x = x + self.attn1(group, group).reshape(-1, pixels, x.shape[2])
        x = x + self.attn2(self.norm2(x), tokens)
        return x + self.ff(self.norm3(x))


class Attention(nn.Module):
    """Multi-head attention of `x` to `context`."""

    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k, self.to_v = (nn.Linear(context_dim, dim, bias=False) for _ in range(2))
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        projected = (self.to_q(x), self.to_k(context), self.to_v(context))
        q, k, v = (rows.unflatten(2, (self.heads, -1)).transpose(1, 2) for rows in projected)
        return self.to_out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """GEGLU (Shazeer 2020): half of the first layer, times GELU of the other half."""

    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.ModuleList([Projection(dim, 8 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.net[0](x).chunk(2, -1)
        return self.net[2](value * functional.gelu(gate))


class Projection(nn.Module):
    """A linear layer that the weights call `proj`."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.proj = nn.Linear(dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Downsample(nn.Module):
    """Half the size."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Twice the size."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))


def time_features(time: Tensor, width: int) -> Tensor:
    """Cosines and sines [b, width] of the training step, float32 (Ho et al. 2020)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, device=time.device) / half)
    angles = time.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def read_config(settings: dict[str, Any]) -> MVDreamConfig:
    """The sizes in a published config.json. Raises KeyError, TypeError or ValueError when it describes something else.

    What the published file leaves out has the published network's value.
    """
    names = ("image_size", "in_channels", "out_channels", "model_channels", "num_res_blocks", "num_head_channels")
    numbers = {name: int(settings[name]) for name in (*names, "context_dim")}
    if settings.get("ip_dim", 0):
        raise ValueError("it wants an image prompt (ImageDream), expected a network of words and cameras alone")
    return MVDreamConfig(
        **numbers,
        channel_mult=_whole(settings["channel_mult"]),
        attention_resolutions=_whole(settings["attention_resolutions"]),
        transformer_depth=int(settings.get("transformer_depth", 1)),
        camera_dim=int(settings["camera_dim"]),
    )


def _whole(numbers: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(number) for number in numbers)


def _stage(config: MVDreamConfig, channels: int, out_channels: int, level: int) -> Stage:
    stage = Stage([ResBlock(channels, out_channels, 4 * config.model_channels)])
    if 2**level in config.attention_resolutions:
        stage.append(Transformer(out_channels, config))
    return stage
