"""Our encoder of the autoencoder: diffusers' function and gradient, in half precision too, and its graphs."""

import pytest
import torch
from diffusers import AutoencoderKL

from nerf_bridge.errors import UserError
from nerf_bridge.prior.models import frozen_encoder, group_norm, vae_layers, vae_weights
from nerf_bridge.prior.models.frozen_encoder import FrozenEncoder
from nerf_bridge.prior.models.vae_weights import Scales, build, encoder_of, relative_error

SIZES = (16, 24)
BLOCKS = 8  # residual blocks of the tiny autoencoder


def autoencoder(widths=(8, 16, 16), **settings):
    torch.manual_seed(3)
    vae = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=2,
        norm_num_groups=4,
        **({"latent_channels": 4} | settings),
    ).requires_grad_(False)
    for parameter in vae.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return vae


def pictures(n=2, dtype=torch.float64):
    return torch.rand(n, 3, *SIZES, dtype=dtype, generator=torch.Generator().manual_seed(1))


def by_diffusers(vae, images, probe=None):
    """Latents, and the gradient of their product with `probe`."""
    images = images.clone().requires_grad_()
    z = vae.encode(2 * images - 1).latent_dist.mode()
    probe = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(2)) if probe is None else probe
    return z.detach(), torch.autograd.grad(z, images, probe)[0], probe


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
        {"mid_block_add_attention": False},
    ],
    ids=["sd", "flux", "no attention"],
)
@pytest.mark.parametrize("scales", [Scales(1.0, (1.0,) * BLOCKS), Scales(2**-6, tuple(2.0**-i for i in range(BLOCKS)))])
@pytest.mark.parametrize("most_scores", [1 << 25, 100], ids=["whole", "in slices"])
def test_latents_and_gradient_are_diffusers(settings, scales, most_scores, monkeypatch):
    monkeypatch.setattr(vae_layers, "MOST_SCORES", most_scores)
    vae = autoencoder(**settings).double()
    encoder = build(vae, torch.float64, scales)
    z, kept = encoder.forward(pictures())
    expected, expected_grad, probe = by_diffusers(vae, pictures())
    assert torch.allclose(z, expected, atol=1e-12)
    assert relative_error(encoder.backward(probe, kept), expected_grad) < 1e-12
    assert not kept, "the backward pass lets go of what it has used"


def test_blocks_that_are_computed_again_give_the_same_and_keep_less():
    encoder = build(autoencoder().double(), torch.float64, Scales(1.0, (1.0,) * BLOCKS))
    z, kept = encoder.forward(pictures())
    same, fewer = encoder.sparing(True).forward(pictures())
    assert torch.equal(z, same) and len(kept) - len(fewer) == 2 * BLOCKS
    probe = torch.ones_like(z)
    assert torch.equal(encoder.backward(probe, kept), encoder.sparing(True).backward(probe, fewer)) and not fewer
    encode = FrozenEncoder(encoder, graphs=False)
    encode.spare(True)
    encode.spare(False)
    assert len(encode.encoder.forward(pictures())[1]) == len(encoder.forward(pictures())[1])


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_half_precision_takes_gradients_of_any_size(size):
    vae = autoencoder(widths=(32, 64))
    half, remark = encoder_of(vae, torch.float16)
    images = pictures(dtype=torch.float32)
    _, expected, probe = by_diffusers(vae.float(), images)
    grad = half.backward(size * probe, half.forward(images)[1])
    assert remark is None and half.dtype == torch.float16
    assert relative_error(grad / size, expected) < 0.01


def test_sums_beyond_half_precision_are_held_smaller():
    vae = autoencoder(widths=(32, 64))
    vae.encoder.down_blocks[0].resnets[0].conv2.weight.mul_(1e5)
    vae.encoder.down_blocks[1].resnets[0].conv1.weight.mul_(1e5)
    images = pictures(dtype=torch.float32)
    expected, expected_grad, probe = by_diffusers(vae, images)
    plain = build(vae, torch.float16, Scales(1.0, (1.0,) * 6))
    assert not bool(plain.forward(images)[0].isfinite().all())
    half, remark = encoder_of(vae, torch.float16)
    z, kept = half.forward(images)
    assert remark is None and relative_error(z, expected) < 0.01
    assert relative_error(half.backward(probe, kept), expected_grad) < 0.01


def test_a_precision_that_is_too_coarse_gives_way_to_float32(monkeypatch):
    monkeypatch.setattr(vae_weights, "TOLERANCE", 1e-5)
    encoder, remark = encoder_of(autoencoder(widths=(32, 64)), torch.float16)
    assert encoder.dtype == torch.float32
    assert "computes in float32: in float16 it would be off by" in remark


@pytest.mark.parametrize("tolerance", [0.01, 1e-5], ids=["half fits", "half does not"])
def test_the_trial_in_float32_compiles_no_kernels(tolerance, monkeypatch):
    """Those of half precision are the ones that the steps run, and are tried as they are."""
    fit, seen = group_norm._kernels_fit, set()

    def watched(x, groups):
        seen.add((x.dtype, group_norm._KERNELS_WANTED.get()))
        return fit(x, groups)

    monkeypatch.setattr(vae_weights, "TOLERANCE", tolerance)
    monkeypatch.setattr(group_norm, "_kernels_fit", watched)
    encoder, _ = encoder_of(autoencoder(widths=(32, 64)), torch.float16)
    assert seen == {(torch.float32, False), (torch.float16, True)}
    seen.clear()
    encoder.forward(pictures(dtype=torch.float32))
    assert seen == {(encoder.dtype, True)}, "what comes out of it has its kernels"


def test_another_kind_of_autoencoder_is_refused():
    vae = AutoencoderKL(block_out_channels=(32,), act_fn="gelu")
    with pytest.raises(UserError, match="DownEncoderBlock2D with gelu, expected DownEncoderBlock2D with silu"):
        encoder_of(vae, torch.float32)


class FakeGraph:
    """A recording that is played by doing the work again, into the same tensors."""

    def __init__(self, work, results):
        self.work, self.results = work, results

    def replay(self):
        for mine, new in zip(self.results, self.work(), strict=True):
            mine.copy_(new)


def fake_record(work, pool):
    """As a graph that uses the memory of what its backward pass has used up: that is filled with rubbish."""
    result = work()
    flat = [result] if isinstance(result, torch.Tensor) else [result[0], *result[1]]

    def again():
        new = work() if isinstance(result, torch.Tensor) else (lambda pair: [pair[0], *pair[1]])(work())
        return [new] if isinstance(new, torch.Tensor) else new

    return FakeGraph(again, flat), result


@pytest.fixture
def graphs_on_cpu(monkeypatch):
    """FrozenEncoder's book-keeping with stand-ins for the recorder, since there is none without a GPU."""

    def recorded(encoder, images):
        given = images.detach().clone()
        forward, (z, kept) = fake_record(lambda: encoder.forward(given), None)
        grad_z, held = torch.zeros_like(z), list(kept)
        images_grad = torch.zeros_like(given)

        class Backward:
            def replay(self):
                images_grad.copy_(encoder.backward(grad_z, list(held)))
                for tensor in held:
                    tensor.fill_(torch.nan)

        return frozen_encoder.Recording(given, z, forward, grad_z, images_grad, Backward(), None)

    monkeypatch.setattr(frozen_encoder, "_recorded", recorded)


def test_calls_between_forward_and_backward_do_no_harm(graphs_on_cpu):
    vae = autoencoder().double()
    encode = FrozenEncoder(build(vae, torch.float64, Scales(1.0, (1.0,) * BLOCKS)), graphs=True)
    first, second = pictures().requires_grad_(), (1 - pictures()).requires_grad_()
    z1, z2 = encode(first), encode(second)
    with torch.no_grad():
        encode(pictures(3))
    for images, z in ((second, z2), (first, z1), (first, z1)):  # the last: once more for a graph that was kept
        expected, expected_grad, probe = by_diffusers(vae, images.detach())
        assert torch.allclose(z, expected)
        assert torch.allclose(torch.autograd.grad(z, images, probe, retain_graph=True)[0], expected_grad)
    assert len(encode.recordings) == 2


def test_sparing_gives_the_recordings_back(graphs_on_cpu):
    encode = FrozenEncoder(build(autoencoder().double(), torch.float64, Scales(1.0, (1.0,) * BLOCKS)), graphs=True)
    images = pictures(1).requires_grad_()
    encode(images)
    encode.spare(True)
    assert not encode.recordings
    z = encode(images)
    expected, expected_grad, probe = by_diffusers(autoencoder().double(), images.detach())
    assert torch.allclose(z, expected)
    assert torch.allclose(torch.autograd.grad(z, images, probe)[0], expected_grad)


def test_old_recordings_make_room(graphs_on_cpu):
    encode = FrozenEncoder(build(autoencoder().double(), torch.float64, Scales(1.0, (1.0,) * BLOCKS)), graphs=True)
    images = pictures(1).requires_grad_()
    z = encode(images)
    for n in (2, 3, 4):
        encode(pictures(n))
    assert len(encode.recordings) == frozen_encoder.MOST_RECORDINGS
    _, expected_grad, probe = by_diffusers(autoencoder().double(), images.detach())
    assert torch.allclose(torch.autograd.grad(z, images, probe)[0], expected_grad)


@pytest.mark.cuda
def test_graphs_on_the_gpu_give_what_diffusers_gives():
    vae = autoencoder(widths=(128, 256)).cuda()
    images = torch.rand(2, 3, 64, 48, device="cuda").requires_grad_()
    z = vae.encode(2 * images - 1).latent_dist.mode()
    probe = torch.randn_like(z)
    (expected,) = torch.autograd.grad(z, images, probe)
    for graphs in (False, True):
        encoder, remark = encoder_of(vae, torch.float16)
        encode = FrozenEncoder(encoder, graphs)
        assert remark is None
        for _ in range(2):
            got = encode(images)
            assert relative_error(got, z) < 0.01
            assert relative_error(torch.autograd.grad(got, images, probe)[0], expected) < 0.01


@pytest.mark.cuda
def test_the_recorded_encoder_never_waits_for_the_gpu():
    encode = FrozenEncoder(encoder_of(autoencoder(widths=(128, 256)).cuda(), torch.float16)[0], graphs=True)
    images = torch.rand(1, 3, 64, 64, device="cuda").requires_grad_()
    torch.autograd.grad(encode(images).sum(), images)
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(encode(images).sum(), images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
