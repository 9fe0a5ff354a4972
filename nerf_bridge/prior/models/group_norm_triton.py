"""Triton kernels of the group norm: moments, normalisation with SiLU, and its backward pass to the input alone.

Activations are channels-last, so that an image is a row of pixels of C channels each. Sums over an image run in two
stages: many programs each reduce a run of pixels channel by channel, then one program a group joins what they found.
Everything is summed in float32 and in a fixed order; nothing depends on which program is first. Offsets within an
image are 32-bit, across images 64-bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerf_bridge.prior.models.norm import Norm

TILE_ELEMENTS = 4096  # of the activations that a program holds at once
RUN_CHANNELS = 1024  # a program of a reduction takes so many tiles over the channels: 8 of 128 channels, 2 of 512
ROWS = 1024  # runs that a joining program reads at once
WARPS, JOIN_WARPS = 4, 8


@triton.jit(do_not_specialize=["add"])
def _moments_kernel(
    x, skip, bias, out, partial, pixels, chunks, add, CHANNELS: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr
):
    """Mean and sum of squared deviations of each channel over a run of pixels; `add`: of x + skip, which is stored."""
    chunk, image = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, CHANNELS)
    shift = tl.load(bias + channel)
    base = image.to(tl.int64) * pixels * CHANNELS
    mean = tl.zeros([CHANNELS], tl.float32)
    spread = tl.zeros([CHANNELS], tl.float32)
    seen = 0.0
    for i in range(TILES):
        pixel = (chunk * TILES + i) * TILE + tl.arange(0, TILE)
        inside = (pixel < pixels)[:, None] & (channel >= 0)[None, :]
        place = pixel[:, None] * CHANNELS + channel[None, :]
        value = tl.load(x + base + place, mask=inside, other=0.0).to(tl.float32) + shift[None, :]
        value += tl.load(skip + base + place, mask=inside & (add != 0), other=0.0).to(tl.float32)
        stored = value.to(out.dtype.element_ty)
        tl.store(out + base + place, stored, mask=inside & (add != 0))
        value = tl.where(add != 0, stored.to(tl.float32), value)
        n = tl.minimum(tl.maximum(pixels - (chunk * TILES + i) * TILE, 0), TILE).to(tl.float32)
        if n > 0:  # joined as Chan et al. (1979) join the moments of two sets
            tile_mean = tl.sum(tl.where(inside, value, 0.0), axis=0) / n
            off = tl.where(inside, value - tile_mean[None, :], 0.0)
            apart = tile_mean - mean
            mean += apart * (n / (seen + n))
            spread += tl.sum(off * off, axis=0) + apart * apart * (seen * n / (seen + n))
            seen += n
    row = partial + (image.to(tl.int64) * 2 * chunks + chunk) * CHANNELS + channel
    tl.store(row, mean)
    tl.store(row + chunks * CHANNELS, spread)


@triton.jit
def _join_moments_kernel(
    partial, stats, pixels, chunks, run,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, LOOPS: tl.constexpr,
):  # fmt: skip
    """Mean and variance of a group (WIDTH channels) of an image from the moments of its runs of `run` pixels."""
    group, image = tl.program_id(0), tl.program_id(1)
    channel = group * WIDTH + tl.arange(0, WIDTH)
    base = partial + image.to(tl.int64) * 2 * chunks * CHANNELS
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    for i in range(LOOPS):
        row = i * ROWS + tl.arange(0, ROWS)
        n = tl.minimum(tl.maximum(pixels - row * run, 0), run).to(tl.float32)
        place = row[:, None] * CHANNELS + channel[None, :]
        total += n[:, None] * tl.load(base + place, mask=(row < chunks)[:, None], other=0.0)
    elements = (pixels * WIDTH).to(tl.float32)
    mean = tl.sum(tl.sum(total, axis=1), axis=0) / elements
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    for i in range(LOOPS):
        row = i * ROWS + tl.arange(0, ROWS)
        n = tl.minimum(tl.maximum(pixels - row * run, 0), run).to(tl.float32)
        place = row[:, None] * CHANNELS + channel[None, :]
        apart = tl.load(base + place, mask=(row < chunks)[:, None], other=0.0) - mean
        spread = tl.load(base + chunks * CHANNELS + place, mask=(row < chunks)[:, None], other=0.0)
        total += spread + n[:, None] * apart * apart
    out = stats + (image * tl.num_programs(0) + group) * 2
    tl.store(out, mean)
    tl.store(out + 1, tl.sum(tl.sum(total, axis=1), axis=0) / elements)


@triton.jit
def _normalised(x, bias, stats, place, inside, channel, image, eps, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    """(x + bias - mean) / sd for a tile, and 1 / sd of its channels."""
    row = stats + (image * (CHANNELS // WIDTH) + channel // WIDTH) * 2
    inverse = 1.0 / tl.sqrt(tl.load(row + 1) + eps)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    return (value + (tl.load(bias + channel) - tl.load(row))[None, :]) * inverse[None, :], inverse


@triton.jit(do_not_specialize=["silu"])
def _normalise_kernel(
    x, bias, stats, gain, offset, out, pixels, eps, silu, amplitude,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """gain * normalised + offset, through SiLU where `silu`, times `amplitude`."""
    image = tl.program_id(1)
    channel = tl.arange(0, CHANNELS)
    pixel = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = (pixel < pixels)[:, None] & (channel >= 0)[None, :]
    base = image.to(tl.int64) * pixels * CHANNELS
    place = pixel[:, None] * CHANNELS + channel[None, :]
    normal, _ = _normalised(x + base, bias, stats, place, inside, channel, image, eps, CHANNELS, WIDTH)
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


@triton.jit(do_not_specialize=["silu"])
def _grad_sums_kernel(
    x, grad, bias, stats, gain, offset, partial, pixels, chunks, eps, silu, amplitude,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Over a run of pixels, for each channel: sum of the normalised values' gradient, and of gradient * value."""
    chunk, image = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, CHANNELS)
    base = image.to(tl.int64) * pixels * CHANNELS
    plain = tl.zeros([CHANNELS], tl.float32)
    along = tl.zeros([CHANNELS], tl.float32)
    for i in range(TILES):
        pixel = (chunk * TILES + i) * TILE + tl.arange(0, TILE)
        inside = (pixel < pixels)[:, None] & (channel >= 0)[None, :]
        place = pixel[:, None] * CHANNELS + channel[None, :]
        normal, _ = _normalised(x + base, bias, stats, place, inside, channel, image, eps, CHANNELS, WIDTH)
        g = _grad_normal(normal, grad + base, gain, offset, place, inside, channel, silu, amplitude)
        plain += tl.sum(g, axis=0)
        along += tl.sum(g * normal, axis=0)
    row = partial + (image.to(tl.int64) * 2 * chunks + chunk) * CHANNELS + channel
    tl.store(row, plain)
    tl.store(row + chunks * CHANNELS, along)


@triton.jit
def _join_sums_kernel(
    partial, means, pixels, chunks,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, LOOPS: tl.constexpr,
):  # fmt: skip
    """Both sums over a group of an image, divided by its number of elements."""
    group, image = tl.program_id(0), tl.program_id(1)
    channel = group * WIDTH + tl.arange(0, WIDTH)
    base = partial + image.to(tl.int64) * 2 * chunks * CHANNELS
    plain = tl.zeros([ROWS, WIDTH], tl.float32)
    along = tl.zeros([ROWS, WIDTH], tl.float32)
    for i in range(LOOPS):
        row = i * ROWS + tl.arange(0, ROWS)
        place = row[:, None] * CHANNELS + channel[None, :]
        plain += tl.load(base + place, mask=(row < chunks)[:, None], other=0.0)
        along += tl.load(base + chunks * CHANNELS + place, mask=(row < chunks)[:, None], other=0.0)
    elements = (pixels * WIDTH).to(tl.float32)
    out = means + (image * tl.num_programs(0) + group) * 2
    tl.store(out, tl.sum(tl.sum(plain, axis=1), axis=0) / elements)
    tl.store(out + 1, tl.sum(tl.sum(along, axis=1), axis=0) / elements)


@triton.jit(do_not_specialize=["silu", "add"])
def _backward_kernel(
    x, grad, skip, bias, stats, means, gain, offset, out, pixels, eps, silu, amplitude, add,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """(g - mean g - normal * mean(g * normal)) / sd, and `skip` on top where `add`."""
    image = tl.program_id(1)
    channel = tl.arange(0, CHANNELS)
    pixel = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = (pixel < pixels)[:, None] & (channel >= 0)[None, :]
    base = image.to(tl.int64) * pixels * CHANNELS
    place = pixel[:, None] * CHANNELS + channel[None, :]
    normal, inverse = _normalised(x + base, bias, stats, place, inside, channel, image, eps, CHANNELS, WIDTH)
    g = _grad_normal(normal, grad + base, gain, offset, place, inside, channel, silu, amplitude)
    row = means + (image * (CHANNELS // WIDTH) + channel // WIDTH) * 2
    result = (g - tl.load(row)[None, :] - normal * tl.load(row + 1)[None, :]) * inverse[None, :]
    result += tl.load(skip + base + place, mask=inside & (add != 0), other=0.0).to(tl.float32)
    tl.store(out + base + place, result.to(out.dtype.element_ty), mask=inside)


def moments(x: Tensor, bias: Tensor, groups: int, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    """See group_norm.moments; the sum is `x` itself where there is no skip."""
    b, channels, h, w = x.shape
    tile, tiles, chunks = _cut(h * w, channels)
    partial = torch.empty(b, 2, chunks, channels, device=x.device)
    stats = torch.empty(b, groups, 2, device=x.device)
    out = x if skip is None else torch.empty_like(x)
    other, add = (x, 0) if skip is None else (skip, 1)
    _moments_kernel[(chunks, b)](
        x, other, bias, out, partial, h * w, chunks, add, CHANNELS=channels, TILE=tile, TILES=tiles, num_warps=WARPS
    )
    _join_moments_kernel[(groups, b)](
        partial, stats, h * w, chunks, tile * tiles,
        CHANNELS=channels, WIDTH=channels // groups, ROWS=ROWS, LOOPS=triton.cdiv(chunks, ROWS), num_warps=JOIN_WARPS,
    )  # fmt: skip
    return out, stats


def normalise(x: Tensor, bias: Tensor, stats: Tensor, norm: Norm, silu: bool) -> Tensor:
    """See group_norm.normalise."""
    b, channels, h, w = x.shape
    tile, _, _ = _cut(h * w, channels)
    sizes = {"CHANNELS": channels, "WIDTH": channels // norm.groups, "TILE": tile}
    out = torch.empty_like(x)
    _normalise_kernel[(triton.cdiv(h * w, tile), b)](
        x, bias, stats, norm.gain, norm.offset, out, h * w, norm.eps, int(silu), norm.amplitude,
        **sizes, num_warps=WARPS,
    )  # fmt: skip
    return out


def backward(
    grad: Tensor, x: Tensor, bias: Tensor, stats: Tensor, norm: Norm, silu: bool, skip: Tensor | None
) -> Tensor:
    """See group_norm.backward."""
    b, channels, h, w = x.shape
    tile, tiles, chunks = _cut(h * w, channels)
    sizes = {"CHANNELS": channels, "WIDTH": channels // norm.groups}
    partial = torch.empty(b, 2, chunks, channels, device=x.device)
    means, out = torch.empty_like(stats), torch.empty_like(x)
    _grad_sums_kernel[(chunks, b)](
        x, grad, bias, stats, norm.gain, norm.offset, partial, h * w, chunks, norm.eps, int(silu), norm.amplitude,
        **sizes, TILE=tile, TILES=tiles, num_warps=WARPS,
    )  # fmt: skip
    _join_sums_kernel[(norm.groups, b)](
        partial, means, h * w, chunks, **sizes, ROWS=ROWS, LOOPS=triton.cdiv(chunks, ROWS), num_warps=JOIN_WARPS
    )
    other, add = (x, 0) if skip is None else (skip, 1)
    _backward_kernel[(triton.cdiv(h * w, tile), b)](
        x, grad, other, bias, stats, means, norm.gain, norm.offset, out, h * w, norm.eps, int(silu), norm.amplitude,
        add, **sizes, TILE=tile, num_warps=WARPS,
    )  # fmt: skip
    return out


def _cut(pixels: int, channels: int) -> tuple[int, int, int]:
    """Pixels in a tile, tiles in a run, and runs in an image."""
    tile, tiles = max(TILE_ELEMENTS // channels, 1), max(RUN_CHANNELS // channels, 1)
    return tile, tiles, triton.cdiv(pixels, tile * tiles)
