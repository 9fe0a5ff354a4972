"""The autoencoder's encoder as autograd sees it: latents of images, forward and backward each one CUDA graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nerf_bridge.cuda_graphs import make_room, record, warm_up
from nerf_bridge.prior.models.vae_encoder import Encoder

MOST_RECORDINGS = 2  # shapes of images that are kept recorded


@dataclass
class Recording:
    """Graphs for one shape of images, and the tensors that they read and write.

    Attributes:
        images, grad_z: to be filled before a replay.
        z, grad_images: filled by it.
        turn: which call of forward it holds the activations of; None after a backward pass, which uses them up.
    """

    images: Tensor
    z: Tensor
    forward: torch.cuda.CUDAGraph
    grad_z: Tensor
    grad_images: Tensor
    backward: torch.cuda.CUDAGraph
    turn: int | None


class FrozenEncoder:
    """Images to mean latents; differentiable in the images and in nothing else, once."""

    def __init__(self, encoder: Encoder, graphs: bool):
        """`graphs`: whether to record CUDA graphs, which takes a CUDA device."""
        self.encoder = encoder
        self.graphs = graphs
        self.turns = 0
        self.recordings: dict[tuple[int, ...], Recording] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Latents [b, c, h / f, w / f] of images [b, 3, h, w] in 0..1; float32, or float64 where the encoder is."""
        return _Encode.apply(images, self)

    def spare(self, recompute: bool) -> None:
        """Compute blocks again in the backward pass, or keep what they made; what was recorded is given back."""
        self.encoder = self.encoder.sparing(recompute)
        self.recordings.clear()

    def recording(self, images: Tensor) -> Recording:
        """The graphs for images of this shape and type, recorded when they come for the first time."""
        key = (*images.shape, images.dtype.itemsize)
        if key not in self.recordings:
            make_room(self.recordings, MOST_RECORDINGS)
            self.recordings[key] = _recorded(self.encoder, images)
        return self.recordings[key]

    def replay_forward(self, images: Tensor) -> tuple[Tensor, int]:
        """Latents, and the turn that they were made in."""
        recording = self.recording(images)
        self.turns += 1
        recording.turn = self.turns
        recording.images.copy_(images)
        recording.forward.replay()
        return recording.z.clone(), self.turns

    def replay_backward(self, grad_z: Tensor, images: Tensor, turn: int) -> Tensor:
        """The gradient with respect to `images`, which were encoded in `turn`; once more, if others came since."""
        recording = self.recording(images)
        if recording.turn != turn:
            recording.images.copy_(images)
            recording.forward.replay()
        recording.turn = None
        recording.grad_z.copy_(grad_z)
        recording.backward.replay()
        return recording.grad_images.clone()


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, owner: FrozenEncoder) -> Tensor:
        ctx.owner, ctx.encoder = owner, owner.encoder
        ctx.save_for_backward(images)
        if owner.graphs:
            z, ctx.turn = owner.replay_forward(images)
        else:
            z, ctx.kept = owner.encoder.forward(images)  # not saved by autograd, which would hold all till the end
        return z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_z: Tensor) -> tuple[Tensor, None]:
        (images,) = ctx.saved_tensors
        if ctx.owner.graphs:
            return ctx.owner.replay_backward(grad_z, images, ctx.turn), None
        kept = ctx.kept or ctx.encoder.forward(images)[1]  # a backward pass uses them up; the next makes them again
        return ctx.encoder.backward(grad_z, kept).to(images.dtype), None


def _recorded(encoder: Encoder, images: Tensor) -> Recording:
    """Record forward and backward in one pool, so that the second can take the memory of what the first kept."""
    given = images.detach().clone()
    grad_z = torch.zeros_like(encoder.forward(given)[0])

    def whole() -> Tensor:
        return encoder.backward(grad_z, encoder.forward(given)[1])

    warm_up(whole)
    pool = torch.cuda.graph_pool_handle()
    forward, (z, kept) = record(lambda: encoder.forward(given), pool)
    backward, grad = record(lambda: encoder.backward(grad_z, kept).to(given.dtype), pool)
    return Recording(given, z, forward, grad_z, grad, backward, None)
