"""Compositing: against a plain loop, torch = CPU, gradients, edge cases."""

from __future__ import annotations

import math

import pytest
import torch

from nerf_bridge.ops.composite import composite

BOTH = ["torch", pytest.param("cpu", marks=pytest.mark.compiler)]
ALL = [*BOTH, pytest.param("cuda", marks=pytest.mark.cuda)]  # in float32


def random_samples(counts: list[int], channels: int, dtype: torch.dtype = torch.float32, sigma: float = 5.0):
    """sigmas, features, t_starts, t_ends, packed_info of rays with `counts` samples, steps of unequal length."""
    generator = torch.Generator().manual_seed(0)
    n = sum(counts)
    sigmas = torch.rand(n, generator=generator, dtype=dtype) * sigma
    features = torch.randn(n, channels, generator=generator, dtype=dtype)
    t_starts = torch.cat([torch.arange(count, dtype=dtype) * 0.1 + 2 for count in counts])
    t_ends = t_starts + 0.05 + 0.05 * torch.rand(n, generator=generator, dtype=dtype)
    per_ray = torch.tensor(counts)
    return sigmas, features, t_starts, t_ends, torch.stack([per_ray.cumsum(0) - per_ray, per_ray], 1)


def outputs_and_grads(samples, backend, sides=(0, 1, 2, 3)):
    """On the backend's device; what comes back is on the CPU."""
    samples = [tensor.to("cuda" if backend == "cuda" else "cpu") for tensor in samples]
    sigmas, features = (tensor.clone().requires_grad_() for tensor in samples[:2])
    outputs = composite(sigmas, features, *samples[2:], backend)
    generator = torch.Generator().manual_seed(1)
    weighted = [
        (out * torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)).sum() for out in outputs
    ]
    grads = torch.autograd.grad(sum(weighted[side] for side in sides), (sigmas, features), allow_unused=True)
    return [None if of is None else of.detach().cpu() for of in (*outputs, *grads)]


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return a.shape == b.shape and (a.numel() == 0 or bool((a - b).abs().max() <= tolerance * b.abs().max()))


@pytest.mark.parametrize("backend", BOTH)
def test_sums_are_those_of_the_equation(backend):
    sigmas, features, t_starts, t_ends, packed_info = random_samples([4, 0, 3], 2, torch.float64)
    out, opacity, depth, weights = composite(sigmas, features, t_starts, t_ends, packed_info, backend)
    for ray, (start, count) in enumerate(packed_info.tolist()):
        transmittance, expected = 1.0, [0.0, 0.0, 0.0, 0.0]
        for i in range(start, start + count):
            alpha = 1 - math.exp(-float(sigmas[i] * (t_ends[i] - t_starts[i])))
            weight = transmittance * alpha
            transmittance *= 1 - alpha
            mid = float(t_starts[i] + t_ends[i]) / 2
            for k, value in enumerate((float(features[i, 0]), float(features[i, 1]), 1.0, mid)):
                expected[k] += weight * value
            assert float(weights[i]) == pytest.approx(weight, abs=1e-14)
        assert [*out[ray].tolist(), float(opacity[ray]), float(depth[ray])] == pytest.approx(expected, abs=1e-13)


@pytest.mark.compiler
@pytest.mark.parametrize("channels", [0, 1, 3, 8])
def test_cpu_equals_torch_forward_and_backward(channels):
    samples = random_samples([60, 0, 1, 100, 7] * 20, channels)
    for got, expected in zip(outputs_and_grads(samples, "cpu"), outputs_and_grads(samples, "torch"), strict=True):
        assert close(got, expected)


@pytest.mark.compiler
@pytest.mark.parametrize("side", [0, 1, 2, 3])
def test_each_output_alone_has_the_torch_gradient(side):
    samples = random_samples([20, 5], 3)
    got, expected = (outputs_and_grads(samples, backend, (side,))[4] for backend in ("cpu", "torch"))
    assert close(got, expected)


@pytest.mark.compiler
def test_gradcheck_in_float64():
    sigmas, features, *rest = random_samples([3, 0, 1, 4], 2, torch.float64)
    inputs = (sigmas.requires_grad_(), features.requires_grad_())
    assert torch.autograd.gradcheck(lambda s, f: composite(s, f, *rest, "cpu"), inputs)


@pytest.mark.parametrize("backend", ALL)
def test_an_opaque_first_sample_hides_the_rest(backend):
    samples = random_samples([5], 3)
    samples[0][0] = 1e6
    out, opacity, depth, weights, grad_sigmas, grad_features = outputs_and_grads(samples, backend)
    assert torch.allclose(out[0], samples[1][0]) and opacity[0] == 1
    assert weights.tolist() == [1, 0, 0, 0, 0] and depth[0] == pytest.approx(float(samples[2][0] + samples[3][0]) / 2)
    assert torch.isfinite(grad_sigmas).all() and (grad_features[1:] == 0).all()


@pytest.mark.parametrize("backend", ALL)
def test_thousands_of_opaque_rays_keep_their_precision(backend):
    samples = random_samples([50] * 2000, 1, sigma=1e4)
    out, opacity, _, weights, grad_sigmas, _ = outputs_and_grads(samples, backend)
    assert (opacity <= 1).all() and (opacity > 0.999).all() and torch.isfinite(grad_sigmas).all()
    assert torch.allclose(weights.view(2000, 50).sum(1), opacity, atol=1e-6) and out.abs().max() < 5


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("counts", [[], [0], [0, 0, 0], [1]])
def test_no_rays_empty_rays_and_one_sample(backend, counts):
    per_ray = counts or []
    samples = random_samples(per_ray or [0], 3)
    if not counts:
        samples = (*samples[:4], torch.empty(0, 2, dtype=torch.int64))
    results = outputs_and_grads(samples, backend)
    assert results[0].shape == (len(counts), 3) and results[1].shape == (len(counts),)
    assert all(torch.isfinite(result).all() for result in results)
    if counts == [1]:
        assert results[1].item() == pytest.approx(1 - math.exp(-float(samples[0] * (samples[3] - samples[2]))))
    elif counts:
        assert (results[1] == 0).all() and (results[2] == 0).all()


@pytest.mark.compiler
def test_packed_info_that_points_outside_is_refused():
    samples = random_samples([3, 2], 1)
    samples[4][1, 1] = 3
    with pytest.raises(RuntimeError, match="composite_fwd failed on cpu.*packed_info"):
        composite(*samples, "cpu")


def test_wrong_arguments_are_named():
    sigmas, features, t_starts, t_ends, packed_info = random_samples([3, 2], 9)
    with pytest.raises(ValueError, match="features: expected at most 8 channels, got 9"):
        composite(sigmas, features, t_starts, t_ends, packed_info, "torch")
    with pytest.raises(ValueError, match=r"t_ends: expected shape \[5\], got \[4\]"):
        composite(sigmas, features[:, :3], t_starts, t_ends[1:], packed_info, "torch")
    with pytest.raises(ValueError, match="packed_info: expected int64"):
        composite(sigmas, features[:, :3], t_starts, t_ends, packed_info.int(), "torch")
