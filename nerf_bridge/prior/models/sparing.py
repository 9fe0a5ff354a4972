"""What a big prior does to take less memory: weights that wait in main memory, blocks that are computed again."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def stream_weights(network: nn.Module, device: torch.device) -> None:
    """Keep the weights of `network` in main memory; each layer's come to `device` just before they are used.

    On a GPU the next layer's are copied while one computes. Cannot be taken back.
    """
    from diffusers.hooks import apply_group_offloading

    network.to("cpu")
    apply_group_offloading(
        network,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
        use_stream=device.type == "cuda",
    )


def recompute_blocks(encoder: nn.Module) -> None:
    """Let the residual blocks of diffusers' `encoder` keep their input alone and compute again in the backward pass.

    Nothing is done a second time; cannot be taken back.
    """
    from diffusers.models.resnet import ResnetBlock2D

    for block in encoder.modules():
        if isinstance(block, ResnetBlock2D) and "forward" not in vars(block):
            again = functools.partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
            block.forward = again
