"""The Triton kernels of the group norm against their torch twin; run as a program in Triton's interpreter.

TRITON_INTERPRET=1 python -m prior.models.group_norm_cases        prints the largest error of each kind
"""

from __future__ import annotations

import json
import sys

import torch

from nerf_bridge.prior.models import group_norm, group_norm_triton
from nerf_bridge.prior.models.norm import Norm

SMALL = {"MOST_CHANNELS": 8, "TILE_ELEMENTS": 32, "PROGRAMS": 6, "JOINED": 8}
"""So that runs and joins take several rounds, and channels several programs."""


def errors(device: str, dtype: torch.dtype, shape: tuple[int, ...], groups: int) -> dict[str, float]:
    """Largest difference between kernels on `device` and the twin in float64, over the twin's largest value."""
    torch.manual_seed(0)
    channels = shape[1]
    x, skip, grad = (4 * torch.randn(shape) + shift for shift in (9.0, 1.0, 0.0))
    x, skip, grad = (of.to(dtype).to(memory_format=torch.channels_last) for of in (x, skip, grad))
    bias, gain, offset = (torch.randn(channels) for _ in range(3))
    found = {}
    for silu in (True, False):
        for more in (None, skip):
            exact = Norm(gain.double(), offset.double(), groups, 0.01, 0.5)
            expected, stats = group_norm.moments(x.double(), bias.double(), groups, _double(more))
            y = group_norm.normalise(expected, bias.double(), stats, exact, silu)
            back = group_norm.backward(grad.double(), expected, bias.double(), stats, exact, silu, _double(more))

            norm = Norm(gain.to(device), offset.to(device), groups, 0.01, 0.5)
            on = None if more is None else more.to(device)
            shift = bias.to(device)
            got, got_stats = group_norm_triton.moments(x.to(device), shift, groups, on)
            got_y = group_norm_triton.normalise(got, shift, got_stats, norm, silu)
            got_back = group_norm_triton.backward(grad.to(device), got, shift, got_stats, norm, silu, on)
            pairs = {"sum": (got, expected), "stats": (got_stats, stats), "y": (got_y, y), "grad": (got_back, back)}
            for name, (a, b) in pairs.items():
                assert a.shape == b.shape and (a.dim() == 3 or a.is_contiguous(memory_format=torch.channels_last))
                error = float((a.cpu().double() - b).abs().max() / b.abs().max())
                found[name] = max(found.get(name, 0.0), error)
    return found


def variance_errors(device: str) -> dict[str, float]:
    """Largest relative error of the variance where values lie far from zero, and where the first pixel lies far from
    the others, which hardly differ."""
    torch.manual_seed(0)
    near = torch.randn(1, 8, 12, 12)
    far, apart = 1000 + 0.1 * near, 1 + 1e-3 * near
    apart[:, :, 0, 0] = 100.0
    found = {}
    for name, values in (("far", far), ("apart", apart)):
        x = values.to(device, memory_format=torch.channels_last)
        exact = group_norm.moments(x.cpu().double(), torch.zeros(8).double(), 8)[1][..., 1]
        got = group_norm_triton.moments(x, torch.zeros(8, device=device), 8, None)[1][..., 1].cpu()
        found[name] = float(((got.double() - exact) / exact).abs().max())
    return found


def _double(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.double()


def let_loops_count() -> None:
    """Triton 3.6's interpreter takes int() of arrays of one number for the ends of loops, which NumPy 2.4 refuses."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_mend


if __name__ == "__main__":
    let_loops_count()
    for name, value in SMALL.items():
        setattr(group_norm_triton, name, value)
    shapes = (((2, 16, 5, 7), 4), ((1, 8, 3, 3), 8))
    results = [errors("cpu", dtype, *shape) for dtype in (torch.float32, torch.float16) for shape in shapes]
    sys.stdout.write(json.dumps([*results, variance_errors("cpu")]))
