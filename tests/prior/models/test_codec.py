"""Images to x and back, against diffusers' own autoencoder; and the gradient with respect to the image."""

import pytest
import torch
from diffusers import AutoencoderKL
from prior.models import tiny_models

from nerf_bridge.prior.models.codec import PixelCodec, resized

LATENT = ["sd-epsilon", "sdxl", "sd3", "flux", "mvdream"]


def images(size, n=1, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def float64_prior(tiny_model, tmp_path):
    return lambda family: tiny_models.load(tiny_model(family), tmp_path, torch.float64, image_size=16)


@pytest.mark.parametrize("family", LATENT)
def test_latents_are_shifted_and_scaled_means(family, float64_prior, tiny_model):
    picture = images(16, n=2)
    x = float64_prior(family).encode_image(picture)
    vae = AutoencoderKL.from_pretrained(tiny_model(family), subfolder="vae").double()
    mean, _ = vae.quant_conv(vae.encoder(2 * picture - 1)).chunk(2, 1)
    expected = (mean - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    assert torch.allclose(x, expected.detach(), atol=1e-12)


@pytest.mark.parametrize("family", LATENT)
def test_decoding_undoes_shift_and_scale(family, float64_prior, tiny_model):
    prior = float64_prior(family)
    x = prior.encode_image(images(16))
    vae = AutoencoderKL.from_pretrained(tiny_model(family), subfolder="vae").double()
    expected = vae.decode(x / vae.config.scaling_factor + (vae.config.shift_factor or 0)).sample
    assert torch.allclose(prior.decode_image(x), (expected.detach() / 2 + 0.5).clamp(0, 1), atol=1e-12)


@pytest.mark.parametrize("family", ["sd-epsilon", "flux", "if"])
@pytest.mark.parametrize("size", [16, 12])
def test_gradient_with_respect_to_the_image(family, size, float64_prior):
    prior = float64_prior(family)
    picture = images(size).requires_grad_()
    probe = torch.randn(prior.encode_image(picture).shape, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: (prior.encode_image(p) * probe).sum(), (picture,), fast_mode=True)


def test_the_autoencoder_gets_no_gradients(float64_prior):
    prior = float64_prior("sd-epsilon")
    picture = images(16).requires_grad_()
    prior.encode_image(picture).sum().backward()
    assert picture.grad is not None and bool(picture.grad.abs().sum() > 0)
    assert all(parameter.grad is None for parameter in prior.codec.vae.parameters())


def test_pixels_go_to_minus_one_and_one_and_back():
    codec = PixelCodec(8, 1)
    picture = images(8)
    assert torch.equal(codec.encode(picture), 2 * picture - 1)
    assert torch.allclose(codec.decode(codec.encode(picture)), picture)


@pytest.mark.parametrize(("size", "to"), [(8, 16), (32, 16)])
def test_flat_images_stay_flat_at_another_size(size, to):
    flat = torch.full((1, 3, size, size), 0.25)
    assert torch.allclose(resized(flat, to), torch.full((1, 3, to, to), 0.25))
