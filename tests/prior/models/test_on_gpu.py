"""On a GPU: guidance that never makes the host wait, and priors whose compiled networks answer as the plain ones do."""

import itertools

import pytest
import torch
from prior.models import tiny_models

from nerf_bridge.config import GuidanceConfig
from nerf_bridge.guidance import encode_words, guidance_gradient
from nerf_bridge.memory.ladder import RUNGS
from nerf_bridge.prior.models.fast_network import FastNetwork
from nerf_bridge.prior.protocol import ViewCondition
from nerf_bridge.scene.cameras import turntable_cameras

pytestmark = pytest.mark.cuda
CUDA = torch.device("cuda")
SETTINGS = {
    "bridge": GuidanceConfig(solver_steps=1),
    "dual bridge": GuidanceConfig(),
    "sds": GuidanceConfig(method="sds"),
    "nfsd": GuidanceConfig(method="nfsd"),
    "perp-neg": GuidanceConfig(method="sds", perp_neg=True, view_words="on"),
}
# For comparing with float32 on a CPU: one call of the network, and not the bridge's difference of two predictions. A
# random network's are nearly equal, so that what TF32 or half precision rounds would come out magnified.
COMPARED = GuidanceConfig(method="sds", solver_steps=1)


def guided(prior, settings, words, images, condition, noise, t):
    """The gradient with respect to the images."""
    x = prior.encode_image(images)
    grad_x = guidance_gradient(prior, x.detach(), t, noise, words, condition, settings, 2)
    return torch.autograd.grad((x * grad_x).sum(), images)[0]


def arguments(prior, settings, views, device):
    generator = torch.Generator().manual_seed(0)
    words = encode_words(prior, "a green chair", settings)
    images = torch.rand(views, 3, 16, 16, generator=generator).to(device).requires_grad_()
    condition = ViewCondition(turntable_cameras(views, 0.3, 3.0, 0.7).to(device), torch.ones(views, 3, device=device))
    noise = torch.randn(prior.encode_image(images).shape, generator=generator).to(device)
    return settings, words, images, condition, noise, torch.full((views,), 0.4, device=device)


@pytest.mark.parametrize("family", ["sd-epsilon", "sd-v", "sdxl", "sd3", "flux", "mvdream"])
@pytest.mark.parametrize("method", SETTINGS)
def test_guidance_never_waits_for_the_gpu(family, method, tiny_model, tmp_path):
    options = {"device": CUDA, "words_device": CUDA, "compile": "off"}
    prior = tiny_models.load(tiny_model(family), tmp_path, torch.float16, 16, **options)
    given = arguments(prior, SETTINGS[method], 4 if family == "mvdream" else 2, "cuda")
    guided(prior, *given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        guided(prior, *given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd-epsilon", "sdxl", "if", "sd3", "flux", "mvdream"])
def test_plain_recorded_and_compiled_priors_guide_alike(family, tiny_model, tmp_path):
    """The first call is recorded, the second one starts the compiler."""
    views, folder = 4 if family == "mvdream" else 2, tiny_model(family)
    plain = tiny_models.load(folder, tmp_path, torch.float32, 16)
    expected = guided(plain, *arguments(plain, COMPARED, views, "cpu"))
    fast = tiny_models.load(folder, tmp_path, torch.float32, 16, device=CUDA, words_device=CUDA, compile="auto")
    given = arguments(fast, COMPARED, views, "cuda")
    fast.place(RUNGS[0])
    network = fast.denoiser.network
    assert isinstance(network, FastNetwork)
    for n_jobs, swapped in ((0, False), (1, False), (1, True)):
        got = guided(fast, *given)
        assert float((got.cpu() - expected).norm() / expected.norm()) < 0.01
        assert len(network.jobs) == n_jobs
        for job in network.jobs.values():
            job.thread.join(300)
            assert job.succeeded(), job.error
        (recording,) = network.recordings.values()
        assert recording.compiled == swapped


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd-epsilon", "flux"])
def test_down_the_ladder_the_gradient_stays_and_recordings_go(family, tiny_model, tmp_path):
    """Recorded and compiled on the upper rungs, streamed and plain on the lower ones."""
    folder = tiny_model(family)
    plain = tiny_models.load(folder, tmp_path, torch.float32, 16)
    expected = guided(plain, *arguments(plain, COMPARED, 2, "cpu"))
    fast = tiny_models.load(folder, tmp_path, torch.float32, 16, device=CUDA, words_device=CUDA, compile="on")
    given = arguments(fast, COMPARED, 2, "cuda")
    assert fast.codec.encoder.recordings  # of the arguments' encoding
    for above, rung in itertools.pairwise(RUNGS[:-1]):
        guided(fast, *given)
        assert fast.rung == above
        fast.place(rung)
        network = fast.denoiser.network
        assert isinstance(network, FastNetwork) != rung.stream_network
        assert not fast.codec.encoder.recordings and not getattr(network, "recordings", None)
        for _ in range(2):
            got = guided(fast, *given)
            assert float((got.cpu() - expected).norm() / expected.norm()) < 0.01, rung.name
