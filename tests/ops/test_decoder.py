"""The chunked decoder equals the plain two layers, forward and backward."""

import pytest
import torch

from nerf_bridge.ops import decoder
from nerf_bridge.ops.decoder import decode


def inputs(n: int, dtype: torch.dtype = torch.float64, width: int = 5, n_inputs: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(n, n_inputs), (width, n_inputs), (width,), (4, width), (4,)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def plain(features, hidden_weight, hidden_bias, out_weight, out_bias) -> torch.Tensor:
    return (features @ hidden_weight.T + hidden_bias).clamp(min=0.0) @ out_weight.T + out_bias


@pytest.mark.parametrize("n", [1, 7, 8, 20])
def test_equals_the_plain_layers_across_chunks(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "CPU_CHUNK", 8)
    values = inputs(n)
    grad_out = torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(decode(*values), plain(*values), atol=1e-12)
    ours = torch.autograd.grad(decode(*values), values, grad_out)
    reference = torch.autograd.grad(plain(*values), values, grad_out)
    for a, b in zip(ours, reference, strict=True):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max().clamp(min=1.0)


@pytest.mark.compiler
@pytest.mark.parametrize("n", [0, 1, 2, 63, 1000])
@pytest.mark.parametrize("width", [16, 32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_equals_the_plain_layers(n: int, width: int, dtype: torch.dtype) -> None:
    values = inputs(n, dtype, width, n_inputs=7)
    grad_out = torch.randn(n, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))
    ours, reference = decode(*values, "cpu"), plain(*values)
    results = zip(
        [ours, *torch.autograd.grad(ours, values, grad_out)],
        [reference, *torch.autograd.grad(reference, values, grad_out)],
        strict=True,
    )
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert all((a - b).abs().max() <= tolerance * b.abs().max() for a, b in results if b.numel())


@pytest.mark.compiler
def test_the_kernels_sums_are_the_same_for_any_number_of_threads() -> None:
    values, before = inputs(500, torch.float32, 32), torch.get_num_threads()
    results = []
    try:
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            results.append(torch.autograd.grad(decode(*values, "cpu").sin().sum(), values))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "CPU_CHUNK", 3)
    assert torch.autograd.gradcheck(decode, inputs(7))


def test_no_rows() -> None:
    values = inputs(0)
    out = decode(*values)
    assert out.shape == (0, 4)
    out.sum().backward()
    assert all(value.grad is not None and bool((value.grad == 0).all()) for value in values)
