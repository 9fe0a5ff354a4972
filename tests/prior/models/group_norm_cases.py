"""The Triton kernels of the group norm against their torch twin; run as a program in Triton's interpreter.

TRITON_INTERPRET=1 python -m prior.models.group_norm_cases        prints the largest error of each kind
python -m prior.models.group_norm_cases 80 90                     compiles them for such GPUs; prints their sizes
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


KERNELS = {
    "_moments_kernel": ({"ADD": False}, {"ADD": True}),
    "_join_moments_kernel": ({},),
    "_normalise_kernel": ({},),
    "_grad_sums_kernel": ({},),
    "_join_sums_kernel": ({},),
    "_backward_kernel": ({},),
}
IMAGES, SCALES = ("x", "skip", "grad", "out"), ("eps", "amplitude")  # activations; numbers with a fraction
COUNTS = ("pixels", "chunks", "tiles", "blocks", "channels", "width", "run", "silu", "add")


def machine_code(name: str, images: str, chosen: dict[str, object], arch: int) -> bytes:
    """A kernel compiled for GPUs of compute capability `arch`, its activations of the type `images`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, module = getattr(group_norm_triton, name), group_norm_triton
    constants = {"BLOCK": 128, "TILE": module.TILE_ELEMENTS // 128, "STAGES": module.STAGES, "JOINED": module.JOINED}
    constants = {key: value for key, value in (constants | chosen).items() if key in kernel.arg_names}
    types = dict.fromkeys(COUNTS, "i32") | dict.fromkeys(SCALES, "fp32") | dict.fromkeys(IMAGES, "*" + images)
    types |= dict.fromkeys(constants, "constexpr")
    signature = {key: types.get(key, "*fp32") for key in kernel.arg_names}
    aligned = [i for i, key in enumerate(signature) if signature[key].startswith("*") or key == "channels"]
    values = {(kernel.arg_names.index(key),): value for key, value in constants.items()}
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    warps = module.JOIN_WARPS if "JOINED" in constants else module.WARPS
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps}).asm["cubin"]


def sizes(arches: list[int]) -> dict[str, int]:
    """Bytes of every kernel for every GPU, in half and in single precision."""
    return {
        f"{name} {chosen} {images} {arch}": len(machine_code(name, images, chosen, arch))
        for name, choices in KERNELS.items()
        for chosen in choices
        for images in ("fp16", "fp32")
        for arch in arches
    }


if __name__ == "__main__" and len(sys.argv) > 1:
    sys.stdout.write(json.dumps(sizes([int(arch) for arch in sys.argv[1:]])))
elif __name__ == "__main__":
    let_loops_count()
    for name, value in SMALL.items():
        setattr(group_norm_triton, name, value)
    shapes = (((2, 16, 5, 7), 4), ((1, 8, 3, 3), 8))
    results = [errors("cpu", dtype, *shape) for dtype in (torch.float32, torch.float16) for shape in shapes]
    sys.stdout.write(json.dumps([*results, variance_errors("cpu")]))
