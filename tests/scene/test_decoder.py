"""The chunked decoder equals the plain two layers, forward and backward."""

import pytest
import torch

from nerf_bridge.scene import decoder
from nerf_bridge.scene.decoder import decode


def inputs(n: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(n, 6), (5, 6), (5,), (4, 5), (4,)]
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


def test_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "CPU_CHUNK", 3)
    assert torch.autograd.gradcheck(decode, inputs(7))


def test_no_rows() -> None:
    values = inputs(0)
    out = decode(*values)
    assert out.shape == (0, 4)
    out.sum().backward()
    assert all(value.grad is not None and bool((value.grad == 0).all()) for value in values)
