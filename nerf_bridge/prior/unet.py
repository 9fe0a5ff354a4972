"""The embedded prior's network: a U-Net over 64 x 64 pixels that is told the text, the camera and the background.

Built for speed on a laptop and on a GPU alike: channels-last, layer norm over channels without affine parameters,
convolutions without bias, pixel-unshuffle in front. The camera enters three ways, since azimuth is the hardest thing
for it to learn: together with the text into the time embedding, as tokens of the cross-attention, and as a ray map.
The design (designs.py) goes with the text into the time embedding, besides being one of its words. Views of one object
may be denoised together: then the self-attention of each reads all of them, and nothing else is different.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

CAMERA_FEATURES = 13
RAY_PLANES = 6
HEAD_WIDTH = 64
TOGETHER = 4  # views of a set that are denoised together


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the network; `channels` from the finest level (half the image size) to the coarsest."""

    image_size: int = 64
    channels: tuple[int, ...] = (128, 192, 256)
    blocks: int = 2
    attention_from: int = 1
    embedding: int = 384
    text_width: int = 384
    text_length: int = 40


@dataclass(frozen=True)
class Condition:
    """What the network is told about a batch of b images.

    Args:
        text: last hidden states of the text encoder, [b, text_length, text_width]; the last place is the design's.
        text_mask: which tokens are words, [b, text_length], bool; all false is the empty prompt.
        camera: camera_features(...), [b, CAMERA_FEATURES]; zero where unknown.
        rays: Pluecker ray map at half the image size, [b, RAY_PLANES, h, w]; zero where unknown.
        in_sets: so many of the images, the first ones, come in sets of TOGETHER views of one object; a multiple of it.
    """

    text: Tensor
    text_mask: Tensor
    camera: Tensor
    rays: Tensor
    in_sets: int = 0


def normalise(x: Tensor) -> Tensor:
    """Layer norm over the channels of [b, c, h, w], no affine parameters."""
    return functional.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],)).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Two convolutions, modulated by the embedding, around a skip connection."""

    def __init__(self, c_in: int, c_out: int, embedding: int):
        super().__init__()
        self.conv_1 = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        self.conv_2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.modulation = nn.Linear(embedding, 2 * c_out)
        self.skip = nn.Conv2d(c_in, c_out, 1, bias=False) if c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv_2.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv_1(functional.silu(normalise(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, 1)
        h = self.conv_2(functional.silu(normalise(h) * (1 + scale) + shift))
        return self.skip(x) + h


class AttentionBlock(nn.Module):
    """Self-attention over the pixels, of a whole set where there is one, then cross-attention to words and camera."""

    def __init__(self, channels: int, context: int):
        super().__init__()
        self.heads = channels // HEAD_WIDTH
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out_self = nn.Linear(channels, channels, bias=False)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key_value = nn.Linear(context, 2 * channels, bias=False)
        self.out_cross = nn.Linear(channels, channels, bias=False)
        nn.init.zeros_(self.out_self.weight)
        nn.init.zeros_(self.out_cross.weight)

    def forward(self, x: Tensor, context: Tensor, in_sets: int) -> Tensor:
        b, c, height, width = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(b, height * width, c)
        qkv = self.qkv(functional.layer_norm(tokens, (c,)))
        of_sets = qkv[:in_sets].reshape(in_sets // TOGETHER, TOGETHER * height * width, 3 * c)
        seen = [
            self._attend(*(self._split(part) for part in rows.chunk(3, -1)))
            for rows in (of_sets, qkv[in_sets:])
            if len(rows)
        ]
        tokens = tokens + self.out_self(torch.cat([part.reshape(-1, height * width, c) for part in seen]))
        q = self._split(self.query(functional.layer_norm(tokens, (c,))))
        k, v = (self._split(part) for part in self.key_value(context).chunk(2, -1))
        tokens = tokens + self.out_cross(self._attend(q, k, v))
        return tokens.reshape(b, height, width, c).permute(0, 3, 1, 2)

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, HEAD_WIDTH)).transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention where the level has it."""

    def __init__(self, c_ins: list[int], c_out: int, attention: bool, config: UNetConfig):
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(c_in, c_out, config.embedding) for c_in in c_ins)
        self.attentions = nn.ModuleList(AttentionBlock(c_out, config.embedding) for _ in c_ins if attention)

    def forward(self, index: int, x: Tensor, embedding: Tensor, context: Tensor, in_sets: int) -> Tensor:
        """Block number `index`: features [b, c, h, w] with embedding [b, e] and context [b, n, e]."""
        x = self.blocks[index](x, embedding)
        return self.attentions[index](x, context, in_sets) if len(self.attentions) else x


class UNet(nn.Module):
    """Predicts v = alpha * noise - sigma * image from a noised image.

    The variance-preserving schedule is the cosine one in continuous time: alpha = cos(pi t / 2), sigma = sin(pi t / 2).
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        channels, embedding = config.channels, config.embedding
        self.embed = ConditionEmbedding(config)
        self.conv_in = nn.Conv2d(12 + RAY_PLANES, channels[0], 3, padding=1, bias=False)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        previous = channels[0]
        for i, c in enumerate(channels):
            self.down.append(Level([previous] + [c] * (config.blocks - 1), c, i >= config.attention_from, config))
            previous = c
        self.middle = ResidualBlock(previous, previous, embedding)
        for i, c in reversed(list(enumerate(channels))):
            c_ins = [previous + c] + [2 * c] * (config.blocks - 1)
            self.up.append(Level(c_ins, c, i >= config.attention_from, config))
            previous = c
        self.conv_out = nn.Conv2d(channels[0], 12, 3, padding=1, bias=False)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, noised: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """v [b, 3, size, size] for noised images [b, 3, size, size] at times t [b] in (0, 1)."""
        embedding, context = self.embed(t, condition)
        x = torch.cat([functional.pixel_unshuffle(noised, 2), condition.rays], 1)
        x = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        skips = []
        for i, level in enumerate(self.down):
            x = functional.avg_pool2d(x, 2) if i else x
            for j in range(self.config.blocks):
                x = level(j, x, embedding, context, condition.in_sets)
                skips.append(x)
        x = self.middle(x, embedding)
        for i, level in enumerate(self.up):
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest") if i else x
            for j in range(self.config.blocks):
                x = level(j, torch.cat([x, skips.pop()], 1), embedding, context, condition.in_sets)
        return functional.pixel_shuffle(self.conv_out(functional.silu(normalise(x))), 2)


class ConditionEmbedding(nn.Module):
    """Time, text and camera to one embedding [b, e] for modulation and tokens [b, n, e] for cross-attention."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        e = config.embedding
        self.time = nn.Sequential(nn.Linear(256, e), nn.SiLU(), nn.Linear(e, e))
        self.text = nn.Linear(config.text_width, e)
        self.pooled = nn.Linear(config.text_width, e)
        self.design = nn.Linear(config.text_width, e, bias=False)
        self.camera = nn.Sequential(nn.Linear(CAMERA_FEATURES, e), nn.SiLU(), nn.Linear(e, e))
        self.joint = nn.Sequential(nn.Linear(3 * e, e), nn.SiLU(), nn.Linear(e, e))
        self.camera_tokens = nn.Linear(e, 2 * e)
        self.pad_token = nn.Parameter(torch.randn(e) * 0.02)
        nn.init.zeros_(self.design.weight)

    def forward(self, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        mask = condition.text_mask[..., None]
        pooled = (condition.text * mask).sum(1) / mask.sum(1).clamp(min=1)
        pooled = self.pooled(pooled) + self.design(condition.text[:, -1] * mask[:, -1])
        camera = self.camera(condition.camera)
        joint = self.joint(torch.cat([pooled, camera, pooled * camera], -1))
        embedding = functional.silu(self.time(time_features(t).to(joint.dtype)) + joint)
        words = torch.where(mask, self.text(condition.text), self.pad_token)
        cameras = self.camera_tokens(functional.silu(joint)).unflatten(-1, (2, -1))
        return embedding, torch.cat([words, cameras], 1)


def channels_last(network: UNet) -> UNet:
    """`network` itself, its convolution weights laid out channels-last, as the fast kernels want them."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def time_features(t: Tensor) -> Tensor:
    """Sines and cosines [b, 256] of times t [b] in (0, 1), float32."""
    frequencies = torch.exp(torch.linspace(0, math.log(1000.0), 128, device=t.device))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma [b] of the cosine schedule at times t [b] in (0, 1)."""
    return torch.cos(0.5 * math.pi * t), torch.sin(0.5 * math.pi * t)


def camera_features(
    azimuth_rad: Tensor, elevation_rad: Tensor, distance: Tensor, fovy_rad: Tensor, background: Tensor, known: Tensor
) -> Tensor:
    """What the network is told of a view in numbers, [b, CAMERA_FEATURES].

    Args:
        azimuth_rad, elevation_rad, distance, fovy_rad: [b].
        background: RGB in 0..1, [b, 3].
        known: [b] bool; where false the camera is hidden and only the background is told.
    """
    angles = torch.stack([azimuth_rad, 2 * azimuth_rad, elevation_rad], -1)
    lens = torch.stack([5 * (distance - 3), 5 * (fovy_rad - math.radians(40))], -1)
    told = torch.ones_like(azimuth_rad)[:, None]
    camera = torch.cat([angles.sin(), angles.cos(), lens, told], -1) * known[:, None]
    return torch.cat([camera, 2 * background - 1, told], -1)


def ray_map(c2w: Tensor, fovy_rad: Tensor, size: int) -> Tensor:
    """Pluecker coordinates (direction, moment) of the rays through the pixel centres, [b, 6, size, size].

    Args:
        c2w: OpenGL camera-to-world matrices [b, 4, 4]; fovy_rad: [b].
    """
    axis = (torch.arange(size, device=c2w.device) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    tangent = torch.tan(0.5 * fovy_rad)[:, None, None]
    local = torch.stack([x * tangent, y * tangent, -torch.ones_like(x * tangent)], -1)
    directions = functional.normalize(torch.einsum("bhwj,bij->bhwi", local, c2w[:, :3, :3]), dim=-1)
    moments = torch.linalg.cross(c2w[:, None, None, :3, 3].expand_as(directions), directions) / 3
    return torch.cat([directions, moments], -1).permute(0, 3, 1, 2)
