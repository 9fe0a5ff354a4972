"""What a big prior does to take less memory: weights that wait in main memory."""

from __future__ import annotations

import torch
from torch import nn


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
