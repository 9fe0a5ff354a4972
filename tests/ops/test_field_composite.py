"""Activations and volume rendering in one: kernels against the torch twin, forward and backward."""

from __future__ import annotations

import pytest
import torch

from nerf_bridge.ops import field_composite as module
from nerf_bridge.ops.field_composite import DensityActivation, field_composite
from nerf_bridge.ops.march import Samples

ACTIVATIONS = [DensityActivation("trunc_exp", 4.0, 0.5), DensityActivation("softplus", 2.0, 0.8)]
BACKENDS = ["torch", pytest.param("cpu", marks=pytest.mark.compiler), pytest.param("cuda", marks=pytest.mark.cuda)]
COUNTS = [3, 0, 1, 70, 32, 0, 33]


def packed_samples(counts: list[int], dtype: torch.dtype) -> Samples:
    generator = torch.Generator().manual_seed(0)
    count = torch.tensor(counts)
    n = int(count.sum())
    packed_info = torch.stack([count.cumsum(0) - count, count], 1)
    ray_indices = torch.arange(len(counts)).repeat_interleave(count)
    t_starts = torch.cat([2 + 0.05 * torch.arange(c) for c in counts]).to(dtype)
    points = torch.rand(n, 3, generator=generator, dtype=dtype) * 2 - 1
    return Samples(packed_info, ray_indices, t_starts, t_starts + 0.05, points)


def composited(*arguments) -> torch.Tensor:
    """The pixels [n_rays, 6] side by side."""
    color, *rest = field_composite(*arguments)
    return torch.cat([color, torch.stack(rest, dim=1)], dim=1)


def pixels_and_gradients(raw, samples, middles, activation, backend) -> list[torch.Tensor]:
    behind = torch.linspace(0, 1, 3 * len(middles)).to(raw).view(-1, 3).requires_grad_()
    pixels = composited(raw, samples, middles, behind, activation, backend)
    weights = torch.arange(1, 7).to(raw)
    return [pixels.detach(), *torch.autograd.grad((pixels.sin() * weights).sum(), (raw, behind))]


def scene(dtype: torch.dtype, sharpness: float) -> tuple[torch.Tensor, Samples, torch.Tensor]:
    samples = packed_samples(COUNTS, dtype)
    generator = torch.Generator().manual_seed(1)
    raw = torch.randn(samples.n, 4, generator=generator, dtype=dtype) * sharpness
    return raw.requires_grad_(), samples, torch.linspace(2, 3, len(COUNTS), dtype=dtype)


@pytest.mark.compiler
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sharpness", [0.1, 3.0, 20.0])  # fog to opaque, past both ends of trunc_exp
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cpu_equals_torch_forward_and_backward(activation, sharpness, dtype):
    inputs = scene(dtype, sharpness)
    got, expected = (pixels_and_gradients(*inputs, activation, backend) for backend in ("cpu", "torch"))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    for a, b in zip(got, expected, strict=True):
        assert bool((a - b).abs().max() <= tolerance * b.abs().max())


@pytest.mark.cuda
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sharpness", [0.1, 3.0, 20.0])
def test_cuda_equals_float64(activation, sharpness):
    raw, samples, middles = scene(torch.float32, sharpness)
    on_gpu = Samples(*(getattr(samples, name).cuda() for name in list(vars(samples))[:5]))
    got = pixels_and_gradients(raw.detach().cuda().requires_grad_(), on_gpu, middles.cuda(), activation, "cuda")
    exact = Samples(
        *(getattr(samples, name) for name in ("packed_info", "ray_indices")),
        *(getattr(samples, name).double() for name in ("t_starts", "t_ends", "points")),
    )
    expected = pixels_and_gradients(
        raw.detach().double().requires_grad_(), exact, middles.double(), activation, "torch"
    )
    for a, b in zip(got, expected, strict=True):
        assert bool((a.cpu() - b).abs().max() <= 1e-4 * b.abs().max())


@pytest.mark.parametrize(
    "backend",
    [pytest.param("cpu", marks=pytest.mark.compiler), pytest.param("cuda", marks=[pytest.mark.cuda])],
)
@pytest.mark.parametrize("part", range(4))
def test_each_part_of_a_pixel_has_its_gradient_alone(part, backend):
    """The parts that a loss does not use come without a gradient, not with zeros."""
    raw, samples, middles = scene(torch.float32, 1.0)
    results = []
    for device, how in ((backend, backend), ("cpu", "torch")):
        on = Samples(*(getattr(samples, name).to(device) for name in list(vars(samples))[:5]))
        leaves = (raw.detach().to(device).requires_grad_(), torch.full((len(COUNTS), 3), 0.3, device=device))
        leaves[1].requires_grad_()
        pixels = field_composite(leaves[0], on, middles.to(device), leaves[1], ACTIVATIONS[0], how)
        results.append(torch.autograd.grad(pixels[part].sin().sum(), leaves, allow_unused=True))
    for got, expected in zip(*results, strict=True):
        zero = torch.zeros(1)
        a, b = (zero if of is None else of.cpu() for of in (got, expected))
        assert bool((a - b).abs().max() <= 1e-5 * b.abs().max())


@pytest.mark.compiler
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_in_float64(activation):
    samples = packed_samples([3, 0, 1, 4], torch.float64)
    raw = torch.randn(samples.n, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    middles = torch.full((4,), 2.1, dtype=torch.float64)

    behind = torch.rand(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)

    def pixels(raw: torch.Tensor, behind: torch.Tensor) -> torch.Tensor:
        return composited(raw, samples, middles, behind, activation, "cpu")

    assert torch.autograd.gradcheck(pixels, (raw, behind))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_behind_an_opaque_sample_counts(backend):
    device = "cuda" if backend == "cuda" else "cpu"
    samples = packed_samples([80], torch.float32)
    samples = Samples(*(getattr(samples, name).to(device) for name in list(vars(samples))[:5]))
    raw = torch.zeros(80, 4, device=device)
    raw[50:, 0] = 15.0  # opaque from sample 50 on
    raw[51:, 1:] = torch.nan  # so nobody may look there
    raw.requires_grad_()
    middles, behind = torch.tensor([2.5], device=device), torch.zeros(1, 3, device=device)
    pixels = composited(raw, samples, middles, behind, DensityActivation("trunc_exp", 0.0, 1.0), backend)
    (gradient,) = torch.autograd.grad(pixels.sum(), raw)
    assert bool(torch.isfinite(pixels).all()) and float(gradient[:50].abs().min()) > 0
    assert float(gradient[51:].nan_to_num().abs().sum()) == 0


@pytest.mark.compiler
def test_no_rays_and_no_samples_give_empty_and_zero_sums():
    for counts in ([], [0, 0]):
        samples = packed_samples(counts, torch.float32) if counts else None
        if samples is None:
            empty = torch.empty(0)
            samples = Samples(empty.long().view(0, 2), empty.long(), empty, empty, empty.view(0, 3))
        behind = torch.full((len(counts), 3), 0.3)
        pixels = composited(torch.empty(0, 4), samples, torch.zeros(len(counts)), behind, ACTIVATIONS[0], "cpu")
        assert torch.equal(pixels, torch.cat([behind, torch.zeros(len(counts), 3)], dim=1))


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=pytest.mark.compiler)])
def test_what_is_no_number_stays_in_its_ray_and_shows(backend):
    raw, samples, middles = scene(torch.float32, 1.0)
    broken = raw.detach().clone()
    broken[1, 0] = torch.nan  # in ray 0
    behind = torch.zeros(len(COUNTS), 3)
    whole = composited(raw.detach(), samples, middles, behind, ACTIVATIONS[0], backend)
    pixels = composited(broken, samples, middles, behind, ACTIVATIONS[0], backend)
    assert bool(pixels[0, 3].isnan()) and torch.equal(pixels[1:], whole[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_raw_outputs_that_begin_between_16_bytes_are_read_right(backend, monkeypatch):
    """The GPU reads and writes four numbers at a time."""
    device = "cuda" if backend == "cuda" else "cpu"
    raw, samples, middles = scene(torch.float32, 1.0)
    on = Samples(*(getattr(samples, name).to(device) for name in list(vars(samples))[:5]))
    shifted = torch.empty(raw.numel() + 1, device=device)[1:].view(-1, 4).copy_(raw.detach()).requires_grad_()
    assert shifted.is_contiguous() and shifted.data_ptr() % 16 != 0
    read, run_kernel = [], module.run_kernel

    def run(backend: str, name: str, raw: torch.Tensor, *rest: object) -> None:
        read.append(raw.data_ptr() % 16)
        run_kernel(backend, name, raw, *rest)

    monkeypatch.setattr(module, "run_kernel", run)
    got = pixels_and_gradients(shifted, on, middles.to(device), ACTIVATIONS[0], backend)
    expected = pixels_and_gradients(raw, samples, middles, ACTIVATIONS[0], "torch")
    for a, b in zip(got, expected, strict=True):
        assert bool((a.cpu() - b).abs().max() <= 1e-5 * b.abs().max())
    assert read == ([] if backend == "torch" else [0, 0])  # forward, backward


@pytest.mark.parametrize("backend", BACKENDS)
def test_rays_that_are_not_64_bit_integers_are_refused(backend):
    raw, samples, middles = scene(torch.float32, 1.0)
    device = "cuda" if backend == "cuda" else "cpu"
    on = Samples(samples.packed_info.int().to(device), *(of.to(device) for of in list(vars(samples).values())[1:5]))
    behind = torch.zeros(len(COUNTS), 3, device=device)
    with pytest.raises(ValueError, match=f"packed_info: expected int64 on {device}.*, got torch.int32"):
        field_composite(raw.to(device), on, middles.to(device), behind, ACTIVATIONS[0], backend)


def test_wrong_shapes_are_named():
    raw, samples, middles = scene(torch.float32, 1.0)
    with pytest.raises(ValueError, match="raw: expected shape"):
        field_composite(raw[:, :3], samples, middles, torch.zeros(len(COUNTS), 3), ACTIVATIONS[0], "torch")
    with pytest.raises(ValueError, match="t_starts: expected dtype"):
        field_composite(
            raw.double(), samples, middles.double(), torch.zeros(len(COUNTS), 3).double(), ACTIVATIONS[0], "cpu"
        )
    with pytest.raises(ValueError, match="middles: expected shape"):
        field_composite(raw, samples, middles[:2], torch.zeros(len(COUNTS), 3), ACTIVATIONS[0], "torch")
