"""The look-up in a texture: torch's own bilinear sampling, forward and backward, and exact gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nerf_bridge.ops.texture import look_up


def sampled_by_torch(image: Tensor, uv: Tensor) -> Tensor:
    grid = torch.stack([uv[:, 0] * 2 - 1, 1 - uv[:, 1] * 2], dim=-1)[None, None]
    sampled = torch.nn.functional.grid_sample(
        image.permute(2, 0, 1)[None], grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[0, :, 0].T


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (7, 4), (64, 64)])
def test_values_and_gradients_are_those_of_grid_sample(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    uv = torch.rand(1000, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2  # beyond the edges too
    images = [torch.rand(height, width, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)] * 2
    ours, theirs = (image.clone().requires_grad_() for image in images)
    got, expected = look_up(ours, uv), sampled_by_torch(theirs, uv)
    torch.testing.assert_close(got, expected)
    got.sin().sum().backward()
    expected.sin().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_row_0_is_at_the_top_and_texels_have_their_centres_at_halves() -> None:
    image = torch.arange(6.0).reshape(2, 3, 1)
    uv = torch.tensor([[0.5 / 3, 0.75], [2.5 / 3, 0.25], [0.0, 1.0], [0.5, 0.5]])
    assert look_up(image, uv).flatten().tolist() == pytest.approx([0.0, 5.0, 0.0, 2.5])


def test_the_gradient_is_exact() -> None:
    uv = torch.rand(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image = torch.rand(4, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda texture: look_up(texture, uv), (image,))


def test_no_points_and_wrong_shapes() -> None:
    image = torch.ones(2, 2, 3, requires_grad=True)
    out = look_up(image, torch.zeros(0, 2))
    out.sum().backward()
    assert out.shape == (0, 3) and image.grad is not None and not image.grad.any()
    with pytest.raises(ValueError, match="uv: expected shape"):
        look_up(image, torch.zeros(3, 3))
    with pytest.raises(ValueError, match="image: expected shape"):
        look_up(image[0], torch.zeros(3, 2))


@pytest.mark.cuda
def test_cuda_equals_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    image, uv = torch.rand(64, 48, 3, generator=generator), torch.rand(20000, 2, generator=generator)
    on_gpu, here = image.cuda().requires_grad_(), image.clone().requires_grad_()
    got, expected = look_up(on_gpu, uv.cuda()), look_up(here, uv)
    torch.testing.assert_close(got.cpu(), expected)
    got.sin().sum().backward()
    expected.sin().sum().backward()
    assert on_gpu.grad is not None
    torch.testing.assert_close(on_gpu.grad.cpu(), here.grad, rtol=1e-4, atol=1e-4)
