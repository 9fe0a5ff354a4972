"""From diffusers' AutoencoderKL to our encoder: constants folded, and the scale in which its sums are held found out.

Folded in exact precision: the quantisation's convolution into the last one, of whose answer the mean alone is wanted;
the attention's output layer into its values; every bias into what adds it anyway.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nerf_bridge.errors import UserError
from nerf_bridge.prior.models.group_norm import without_kernels
from nerf_bridge.prior.models.norm import Norm
from nerf_bridge.prior.models.vae_encoder import INPUT_CHANNELS, Encoder, Level
from nerf_bridge.prior.models.vae_layers import Attention, Conv, ResNet, make_conv

ROOM = 4096.0  # what activations may come to on the trial images: float16 ends at 65504
TRIAL_LATENTS = 32  # along a side of the trial images' latents
GRAD_PEAKS = (256.0, 1.0, 2.0**-8)  # that are tried, the usual one first
TOLERANCE = 0.01  # of the half-precision encoder's latents and gradients


@dataclass(frozen=True)
class Scales:
    """Powers of two that activations are held multiplied by.

    Attributes:
        total: of the sum through the residual blocks.
        inner: of what lies between the two convolutions of each block, in their order.
    """

    total: float
    inner: tuple[float, ...]


def encoder_of(vae: Any, dtype: torch.dtype) -> tuple[Encoder, str | None]:
    """The encoder of `vae` that computes in `dtype`, tried out on made-up images.

    Half precision is compared with float32 on the device, latents and gradients; where it is more than TOLERANCE off,
    the encoder is one of float32, and the text says why.

    Raises:
        UserError: the autoencoder is not of Stable Diffusion's kind.
    """
    check_structure(vae)
    n_blocks = sum(len(block.resnets) for block in (*vae.encoder.down_blocks, vae.encoder.mid_block))
    plain = Scales(1.0, (1.0,) * n_blocks)
    if dtype in (torch.float32, torch.float64):
        return build(vae, dtype, plain), None
    exact = build(vae, torch.float32, plain)
    images = trial_images(TRIAL_LATENTS * exact.factor, next(vae.parameters()).device)
    with without_kernels(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        z, kept = exact.forward(images)
        scales = scales_for(exact, kept)
        grad_z = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z.device)
        grad_images = exact.backward(grad_z, kept)
    half = build(vae, dtype, scales)
    half_z, half_kept = half.forward(images)
    z_error, grad_errors = relative_error(half_z, z), []
    for peak in GRAD_PEAKS:
        half = replace(half, grad_peak=peak)
        grad_errors.append(relative_error(half.backward(grad_z, list(half_kept)), grad_images))
        if max(z_error, grad_errors[-1]) <= TOLERANCE:  # not so where one is not a number
            return half, None
    named = str(dtype).removeprefix("torch.")
    off = f"{z_error:.2%} (latents) and {min(grad_errors):.2%} (gradient)"
    return exact, f"the autoencoder's encoder computes in float32: in {named} it would be off by {off}"


def check_structure(vae: Any) -> None:
    """Raise UserError unless `vae` has the blocks that our encoder knows."""
    blocks = set(vae.config.down_block_types)
    if blocks != {"DownEncoderBlock2D"} or vae.config.act_fn != "silu":
        known = "DownEncoderBlock2D with silu"
        raise UserError(
            f"its autoencoder has {', '.join(sorted(blocks))} with {vae.config.act_fn}, expected {known}: "
            f"not one of Stable Diffusion's kind"
        )


def scales_for(encoder: Encoder, kept: list[Tensor]) -> Scales:
    """Scales that keep below ROOM what an unscaled encoder kept of the trial images; 1 where it is so anyway."""
    parts = [block for level in encoder.levels for block in level.blocks] + list(encoder.middle)
    rest, sums, inner = iter(kept), [], []
    for part in parts:
        if isinstance(part, ResNet):
            inner.append(_peak(next(rest)))
            next(rest)
        sums.append(_peak(next(rest)))
        next(rest)
    sums.append(_peak(next(rest)))
    return Scales(_power(max(sums)), tuple(_power(peak) for peak in inner))


def trial_images(size: int, device: torch.device) -> Tensor:
    """Two images [2, 3, size, size] in 0..1: noise, and hard blobs of pure colours."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, size, size, generator=generator)
    coarse = functional.interpolate(torch.randn(1, 3, 9, 9, generator=generator), size, mode="bicubic")
    return torch.cat([noise, (8 * coarse + 0.5).clamp(0, 1)]).to(device)


def build(vae: Any, dtype: torch.dtype, scales: Scales) -> Encoder:
    """The encoder's constants, activations in `dtype` held as `scales` says."""
    encoder, total, inner = vae.encoder, scales.total, iter(scales.inner)
    weight, bias = _parameters(encoder.conv_in)
    unused = INPUT_CHANNELS - weight.shape[1]
    conv_in = make_conv(functional.pad(weight, (0, 0, 0, 0, 0, unused)), total * bias, 1, dtype)
    pending, levels = conv_in.bias, []
    for down in encoder.down_blocks:
        blocks = []
        for resnet in down.resnets:
            blocks.append(_resnet(resnet, pending, total, next(inner), dtype))
            pending = torch.zeros_like(blocks[-1].out_bias)
        halving = None
        if down.downsamplers:
            weight, bias = _parameters(down.downsamplers[0].conv)
            halving = make_conv(weight, total * bias, 2, dtype)
            pending = halving.bias
        levels.append(Level(tuple(blocks), halving))
    middle: list[ResNet | Attention] = []
    for i, resnet in enumerate(encoder.mid_block.resnets):
        if i and encoder.mid_block.attentions[i - 1] is not None:
            middle.append(_attention(encoder.mid_block.attentions[i - 1], pending, total, dtype))
        middle.append(_resnet(resnet, pending, total, next(inner), dtype))
    norm_out = _norm(encoder.conv_norm_out, total, 1.0)
    return Encoder(
        conv_in, total, tuple(levels), tuple(middle), norm_out, pending, _mean_conv(vae, dtype), dtype, GRAD_PEAKS[0]
    )


def relative_error(value: Tensor, reference: Tensor) -> float:
    """|value - reference| / |reference|, of all their numbers."""
    return float((value - reference).norm() / reference.norm())


def _resnet(resnet: Any, pending: Tensor, total: float, inner: float, dtype: torch.dtype) -> ResNet:
    conv1, conv2 = _parameters(resnet.conv1), _parameters(resnet.conv2)
    if resnet.conv_shortcut is None:
        shortcut, out_bias = None, total * conv2[1] + pending
    else:
        weight, bias = _parameters(resnet.conv_shortcut)
        shortcut = make_conv(weight, bias, 1, dtype)
        out_bias = total * (conv2[1] + bias) + weight[:, :, 0, 0] @ pending
    return ResNet(
        norm1=_norm(resnet.norm1, total, inner),
        conv1=make_conv(conv1[0], inner * conv1[1], 1, dtype),
        norm2=_norm(resnet.norm2, inner, total),
        conv2=make_conv(conv2[0], conv2[1], 1, dtype),
        shortcut=shortcut,
        pending=pending,
        out_bias=out_bias,
    )


def _attention(attention: Any, pending: Tensor, total: float, dtype: torch.dtype) -> Attention:
    q, q_bias = _parameters(attention.to_q)
    k, _ = _parameters(attention.to_k)
    v, v_bias = _parameters(attention.to_v)
    out, out_bias = _parameters(attention.to_out[0])
    assert attention.heads == 1 and attention.residual_connection and attention.rescale_output_factor == 1
    nothing = torch.zeros_like(q_bias)
    return Attention(
        norm=_norm(attention.group_norm, total, 1.0),
        weight=torch.cat([q, k, out @ v]).to(dtype),
        bias=torch.cat([q_bias, nothing, nothing]).to(dtype),
        pending=pending,
        out_bias=total * (out @ v_bias + out_bias) + pending,
        amplitude=total,
    )


def _mean_conv(vae: Any, dtype: torch.dtype) -> Conv:
    """conv_out and the convolution of 1 x 1 behind it, if there is one, as one to the mean, padded to eights."""
    weight, bias = _parameters(vae.encoder.conv_out)
    n = vae.config.latent_channels
    if vae.quant_conv is not None:
        mixing, shift = _parameters(vae.quant_conv)
        mixing = mixing[:n, :, 0, 0]
        weight, bias = torch.einsum("nm,mcij->ncij", mixing, weight), mixing @ bias + shift[:n]
    weight = functional.pad(weight[:n], (0, 0, 0, 0, 0, 0, 0, -n % 8))
    return make_conv(weight, bias[:n], 1, dtype)


def _norm(norm: Any, held: float, amplitude: float) -> Norm:
    """A group norm of values that are held multiplied by `held`."""
    gain, offset = _parameters(norm)
    return Norm(gain, offset, norm.num_groups, norm.eps * held**2, amplitude)


def _parameters(module: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias, float32 at least, apart from the module's."""
    weight, bias = (parameter.detach().clone() for parameter in (module.weight, module.bias))
    exact = torch.promote_types(weight.dtype, torch.float32)
    return weight.to(exact), bias.to(exact)


def _peak(x: Tensor) -> float:
    return float(x.abs().amax())


def _power(peak: float) -> float:
    """The power of two, 1 at most, that brings `peak` below ROOM."""
    return 2.0 ** min(math.floor(math.log2(ROOM / max(peak, 1e-30))), 0)
