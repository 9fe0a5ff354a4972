"""Triton kernels of the group norm: moments, normalisation with SiLU, and its backward pass to the input alone.

Activations are channels-last, so that an image is a row of pixels of C channels each. A program takes BLOCK channels of
some pixels, whatever C is, so that one variant of each kernel serves a whole network: they are compiled while a run
starts. Sums over an image run in two stages: some programs each reduce a run of pixels channel by channel, then one
program a group joins what they found. A reducing program adds up tile upon tile, number by number, and sums over the
pixels once, at its end: sums across its threads for each tile would take longer than the memory. Of one image there are
as many of them as run at the same time. Everything is summed in float32 and in a fixed order; nothing depends on which
program is first. Offsets within an image are 32-bit, across images 64-bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerf_bridge.prior.models.norm import Norm

MOST_CHANNELS = 128  # of a program; both are powers of two, as the numbers of channels are
TILE_ELEMENTS = 2048  # of the activations that a program holds at once
PROGRAMS = 528  # that reduce an image: four for each multiprocessor of a large GPU
JOINED = 2048  # numbers that a joining program reads at once: all of 512 x 512 pixels with 128 channels in 32 groups
STAGES = 4  # tiles that a reducing program has on their way
WARPS, JOIN_WARPS = 4, 8


@triton.jit
def _channels(blocks, BLOCK: tl.constexpr):
    """Those of this program, [BLOCK]."""
    return tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _places(i, pixels, channels, channel, TILE: tl.constexpr):
    """Offsets [TILE, BLOCK] in an image of the pixels of tile `i` and the channels [BLOCK], and which are inside."""
    pixel = i * TILE + tl.arange(0, TILE)
    return pixel[:, None] * channels + channel[None, :], (pixel < pixels)[:, None] & (channel >= 0)[None, :]


@triton.jit(do_not_specialize=["pixels", "chunks", "tiles", "blocks"])
def _moments_kernel(
    x, skip, bias, out, partial, pixels, chunks, tiles, blocks, channels,
    ADD: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of each channel over a run of `tiles` tiles; `ADD`: of x + skip, which is
    stored.

    Deviations are taken from the mean of the run's first tile, whose values are among those that deviate: so what
    cancels in the variance is at most as many times the variance as the run has tiles.
    """
    chunk, image = tl.program_id(0) // blocks, tl.program_id(1)
    base = image.to(tl.int64) * pixels * channels
    channel = _channels(blocks, BLOCK)
    shift = tl.load(bias + channel)
    start = chunk * tiles * TILE
    place, inside = _places(chunk * tiles, pixels, channels, channel, TILE)
    value = tl.load(x + base + place, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value += shift[None, :] + tl.load(skip + base + place, mask=inside, other=0.0).to(tl.float32)
    pivot = tl.sum(tl.where(inside, value, 0.0), axis=0) / tl.minimum(pixels - start, TILE).to(tl.float32)
    total = tl.zeros([TILE, BLOCK], tl.float32)
    squares = tl.zeros([TILE, BLOCK], tl.float32)
    for i in tl.range(tiles, num_stages=STAGES):
        place, inside = _places(chunk * tiles + i, pixels, channels, channel, TILE)
        value = tl.load(x + base + place, mask=inside, other=0.0).to(tl.float32)
        if ADD:
            value += shift[None, :] + tl.load(skip + base + place, mask=inside, other=0.0).to(tl.float32)
            stored = value.to(out.dtype.element_ty)
            tl.store(out + base + place, stored, mask=inside)
            value = stored.to(tl.float32)
        off = tl.where(inside, value - pivot[None, :], 0.0)
        total += off
        squares += off * off
    n = tl.minimum(pixels - start, tiles * TILE).to(tl.float32)
    off = tl.sum(total, axis=0) / n
    mean = pivot + off
    if not ADD:
        mean += shift
    row = partial + (image.to(tl.int64) * 2 * chunks + chunk) * channels + channel
    tl.store(row, mean)
    tl.store(row + chunks * channels, tl.maximum(tl.sum(squares, axis=0) - n * off * off, 0.0))


@triton.jit
def _joined(i, group, chunks, channels, width, JOINED: tl.constexpr):
    """Of numbers [chunks, channels] the `i`-th JOINED that belong to a group: run, offset, and which are there."""
    number = i * JOINED + tl.arange(0, JOINED)
    run = number // width
    return run, run * channels + group * width + number % width, run < chunks


@triton.jit(do_not_specialize=["pixels", "chunks", "run", "width"])
def _join_moments_kernel(partial, stats, pixels, chunks, run, channels, width, JOINED: tl.constexpr):
    """Mean and variance of a group (`width` channels) of an image from the moments of its runs of `run` pixels."""
    group, image = tl.program_id(0), tl.program_id(1)
    means = partial + image.to(tl.int64) * 2 * chunks * channels
    spreads = means + chunks * channels
    rounds = tl.cdiv(chunks * width, JOINED)
    total = tl.zeros([JOINED], tl.float32)
    for i in range(rounds):
        which, place, there = _joined(i, group, chunks, channels, width, JOINED)
        n = tl.minimum(pixels - which * run, run).to(tl.float32)
        total += n * tl.load(means + place, mask=there, other=0.0)
    elements = (pixels * width).to(tl.float32)
    mean = tl.sum(total, axis=0) / elements
    total = tl.zeros([JOINED], tl.float32)
    for i in range(rounds):
        which, place, there = _joined(i, group, chunks, channels, width, JOINED)
        n = tl.minimum(pixels - which * run, run).to(tl.float32)
        apart = tl.where(there, tl.load(means + place, mask=there, other=0.0) - mean, 0.0)
        total += tl.load(spreads + place, mask=there, other=0.0) + n * apart * apart
    out = stats + (image * tl.num_programs(0) + group) * 2
    tl.store(out, mean)
    tl.store(out + 1, tl.sum(total, axis=0) / elements)


@triton.jit
def _normalised(x, bias, stats, place, inside, channel, image, eps, channels, width):
    """(x + bias - mean) / sd for a tile, and 1 / sd of its channels."""
    row = stats + (image * (channels // width) + channel // width) * 2
    inverse = 1.0 / tl.sqrt(tl.load(row + 1) + eps)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    return (value + (tl.load(bias + channel) - tl.load(row))[None, :]) * inverse[None, :], inverse


@triton.jit(do_not_specialize=["pixels", "blocks", "width", "silu"])
def _normalise_kernel(
    x, bias, stats, gain, offset, out, pixels, blocks, channels, width, eps, silu, amplitude,
    BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """gain * normalised + offset, through SiLU where `silu`, times `amplitude`."""
    image = tl.program_id(1)
    base = image.to(tl.int64) * pixels * channels
    channel = _channels(blocks, BLOCK)
    place, inside = _places(tl.program_id(0) // blocks, pixels, channels, channel, TILE)
    normal, _ = _normalised(x + base, bias, stats, place, inside, channel, image, eps, channels, width)
    y = normal * tl.load(gain + channel)[None, :] + tl.load(offset + channel)[None, :]
    y = amplitude * tl.where(silu != 0, y / (1.0 + tl.exp(-y)), y)
    tl.store(out + base + place, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _grad_normal(normal, grad, gain, offset, place, inside, channel, silu, amplitude):
    """Gradient of the normalised values, from that of the output."""
    factor = tl.load(gain + channel)[None, :]
    y = normal * factor + tl.load(offset + channel)[None, :]
    gate = 1.0 / (1.0 + tl.exp(-y))
    slope = tl.where(silu != 0, gate * (1.0 + y * (1.0 - gate)), 1.0)
    return tl.load(grad + place, mask=inside, other=0.0).to(tl.float32) * slope * (amplitude * factor)


@triton.jit(do_not_specialize=["pixels", "chunks", "tiles", "blocks", "width", "silu"])
def _grad_sums_kernel(
    x, grad, bias, stats, gain, offset, partial, pixels, chunks, tiles, blocks, channels, width, eps, silu, amplitude,
    BLOCK: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Over a run of pixels, for each channel: sum of the normalised values' gradient, and of gradient * value."""
    chunk, image = tl.program_id(0) // blocks, tl.program_id(1)
    base = image.to(tl.int64) * pixels * channels
    channel = _channels(blocks, BLOCK)
    plain = tl.zeros([TILE, BLOCK], tl.float32)
    along = tl.zeros([TILE, BLOCK], tl.float32)
    for i in tl.range(tiles, num_stages=STAGES):
        place, inside = _places(chunk * tiles + i, pixels, channels, channel, TILE)
        normal, _ = _normalised(x + base, bias, stats, place, inside, channel, image, eps, channels, width)
        g = _grad_normal(normal, grad + base, gain, offset, place, inside, channel, silu, amplitude)
        plain += g
        along += g * normal
    row = partial + (image.to(tl.int64) * 2 * chunks + chunk) * channels + channel
    tl.store(row, tl.sum(plain, axis=0))
    tl.store(row + chunks * channels, tl.sum(along, axis=0))


@triton.jit(do_not_specialize=["pixels", "chunks", "width"])
def _join_sums_kernel(partial, means, pixels, chunks, channels, width, JOINED: tl.constexpr):
    """Both sums over a group of an image, divided by its number of elements."""
    group, image = tl.program_id(0), tl.program_id(1)
    sums = partial + image.to(tl.int64) * 2 * chunks * channels
    plain = tl.zeros([JOINED], tl.float32)
    along = tl.zeros([JOINED], tl.float32)
    for i in range(tl.cdiv(chunks * width, JOINED)):
        _, place, there = _joined(i, group, chunks, channels, width, JOINED)
        plain += tl.load(sums + place, mask=there, other=0.0)
        along += tl.load(sums + chunks * channels + place, mask=there, other=0.0)
    elements = (pixels * width).to(tl.float32)
    out = means + (image * tl.num_programs(0) + group) * 2
    tl.store(out, tl.sum(plain, axis=0) / elements)
    tl.store(out + 1, tl.sum(along, axis=0) / elements)


@triton.jit(do_not_specialize=["pixels", "blocks", "width", "silu", "add"])
def _backward_kernel(
    x, grad, skip, bias, stats, means, gain, offset, out, pixels, blocks, channels, width, eps, silu, amplitude, add,
    BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """(g - mean g - normal * mean(g * normal)) / sd, and `skip` on top where `add`."""
    image = tl.program_id(1)
    base = image.to(tl.int64) * pixels * channels
    channel = _channels(blocks, BLOCK)
    place, inside = _places(tl.program_id(0) // blocks, pixels, channels, channel, TILE)
    normal, inverse = _normalised(x + base, bias, stats, place, inside, channel, image, eps, channels, width)
    g = _grad_normal(normal, grad + base, gain, offset, place, inside, channel, silu, amplitude)
    row = means + (image * (channels // width) + channel // width) * 2
    result = (g - tl.load(row)[None, :] - normal * tl.load(row + 1)[None, :]) * inverse[None, :]
    result += tl.load(skip + base + place, mask=inside & (add != 0), other=0.0).to(tl.float32)
    tl.store(out + base + place, result.to(out.dtype.element_ty), mask=inside)


def moments(x: Tensor, bias: Tensor, groups: int, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    """See group_norm.moments; the sum is `x` itself where there is no skip."""
    b, channels, h, w = x.shape
    cut = _cut(h * w, channels)
    partial = torch.empty(b, 2, cut.chunks, channels, device=x.device)
    stats = torch.empty(b, groups, 2, device=x.device)
    out = x if skip is None else torch.empty_like(x)
    _moments_kernel[(cut.chunks * cut.blocks, b)](
        x, x if skip is None else skip, bias, out, partial, h * w, cut.chunks, cut.tiles, cut.blocks, channels,
        ADD=skip is not None, BLOCK=cut.block, TILE=cut.tile, STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
    _join_moments_kernel[(groups, b)](
        partial, stats, h * w, cut.chunks, cut.tile * cut.tiles, channels, channels // groups,
        JOINED=JOINED, num_warps=JOIN_WARPS,
    )  # fmt: skip
    return out, stats


def normalise(x: Tensor, bias: Tensor, stats: Tensor, norm: Norm, silu: bool) -> Tensor:
    """See group_norm.normalise."""
    b, channels, h, w = x.shape
    cut = _cut(h * w, channels)
    out = torch.empty_like(x)
    _normalise_kernel[(triton.cdiv(h * w, cut.tile) * cut.blocks, b)](
        x, bias, stats, norm.gain, norm.offset, out, h * w, cut.blocks, channels, channels // norm.groups, norm.eps,
        int(silu), norm.amplitude, BLOCK=cut.block, TILE=cut.tile, num_warps=WARPS,
    )  # fmt: skip
    return out


def backward(
    grad: Tensor, x: Tensor, bias: Tensor, stats: Tensor, norm: Norm, silu: bool, skip: Tensor | None
) -> Tensor:
    """See group_norm.backward."""
    b, channels, h, w = x.shape
    cut, width = _cut(h * w, channels), channels // norm.groups
    partial = torch.empty(b, 2, cut.chunks, channels, device=x.device)
    means, out = torch.empty_like(stats), torch.empty_like(x)
    _grad_sums_kernel[(cut.chunks * cut.blocks, b)](
        x, grad, bias, stats, norm.gain, norm.offset, partial, h * w, cut.chunks, cut.tiles, cut.blocks, channels,
        width, norm.eps, int(silu), norm.amplitude, BLOCK=cut.block, TILE=cut.tile, STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
    _join_sums_kernel[(norm.groups, b)](
        partial, means, h * w, cut.chunks, channels, width, JOINED=JOINED, num_warps=JOIN_WARPS
    )
    other, add = (x, 0) if skip is None else (skip, 1)
    _backward_kernel[(triton.cdiv(h * w, cut.tile) * cut.blocks, b)](
        x, grad, other, bias, stats, means, norm.gain, norm.offset, out, h * w, cut.blocks, channels, width, norm.eps,
        int(silu), norm.amplitude, add, BLOCK=cut.block, TILE=cut.tile, num_warps=WARPS,
    )  # fmt: skip
    return out


@dataclass(frozen=True)
class Cut:
    """How an image is shared among programs.

    Attributes:
        block: channels of a program; blocks: programs for all channels.
        tile: pixels that it holds at once; tiles: that a reducing program takes, one after the other: a run of pixels.
        chunks: runs in an image.
    """

    block: int
    blocks: int
    tile: int
    tiles: int
    chunks: int


def _cut(pixels: int, channels: int) -> Cut:
    block = min(channels, MOST_CHANNELS)
    blocks, tile = channels // block, max(TILE_ELEMENTS // block, 1)
    n_tiles = triton.cdiv(pixels, tile)
    tiles = triton.cdiv(n_tiles * blocks, PROGRAMS)
    return Cut(block, blocks, tile, tiles, triton.cdiv(n_tiles, tiles))
