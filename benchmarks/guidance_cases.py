"""What is timed of the guidance: networks and encoders alone, and noise, prediction and gradient together by family.

Floors: operations, counted by torch on the same modules without data, over the matrix product's rate of the same run,
or the network's weights over the copy's bandwidth, whichever is longer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.guidance_models import (
    FAMILIES,
    Build,
    Family,
    make_denoiser,
    make_network,
    make_prior,
    make_process,
    make_vae,
    n_parameters,
    our_encoder,
    our_network,
    random_words,
)
from benchmarks.kernel_cases import Setting, Version
from nerf_bridge.config import GuidanceConfig
from nerf_bridge.cuda_graphs import record, warm_up
from nerf_bridge.guidance import encode_words, guidance_gradient
from nerf_bridge.prior.models.prior import DiffusersPrior
from nerf_bridge.prior.models.vae_weights import relative_error
from nerf_bridge.prior.protocol import ViewCondition
from nerf_bridge.scene.cameras import turntable_cameras

PROMPT = "a green armchair"
GUIDANCE = GuidanceConfig(solver_steps=1, scale=100.0, bridge_scale=1.0, bridge_from=0.0)
STAGE = 2
TIME = 0.5


@dataclass(frozen=True)
class GuidanceCase:
    """One line of the results.

    Attributes:
        name: of the case.
        makers: the versions by name, ours first; each is made when its turn comes, and let go after it.
        floors: milliseconds by metric.
        counts: sizes worth telling.
        checks: figures beside the times, by name, for a version's name; each with its unit.
    """

    name: str
    makers: dict[str, Callable[[], Version]]
    floors: dict[str, float]
    counts: dict[str, int]
    checks: dict[str, tuple[str, Callable[[], dict[str, float]]]]


def unet_case(name: str, setting: Setting, batch: int) -> GuidanceCase:
    """The U-Net of SD 2.1 for `batch` latents of 64 x 64, as the loop calls it: fresh tensors in, a copy out."""
    family, build = FAMILIES["sd21"], Build(setting.device, setting.shrink > 1)
    network_inputs = inputs_of(family, build, batch)

    def version(name: str, wrap: Callable[[Any], Callable[..., Tensor]]) -> Callable[[], Version]:
        def make() -> Version:
            answer = wrap(make_network(family, build))
            return Version(name, lambda: [answer(*network_inputs)])

        return make

    makers = {"ours": version("ours", lambda net: predict_by(family, our_network(net, "on"), build))}
    if not setting.quick:
        makers["eager"] = version("eager", lambda net: predict_by(family, net, build))
    if not setting.quick and setting.device.type == "cuda":
        makers["eager + CUDA graph"] = version("eager + CUDA graph", lambda net: graphed(net, family, build))
    flop, weights = network_work(family, build, batch)
    floors = {"forward": setting.floor(weights, flop)}
    checks = {"compiled against plain": ("%", lambda: {"ours": compiled_error(family, build, network_inputs)})}
    return GuidanceCase(name, makers, floors, {"GFLOP": round(flop / 1e9)}, checks)


def vae_case(name: str, setting: Setting, batch: int) -> GuidanceCase:
    """The encoder of SD 2.1's autoencoder at 512 x 512, forward and backward to the image."""
    family, build = FAMILIES["sd21"], Build(setting.device, setting.shrink > 1)
    size = build.image_size(family)
    images = torch.rand(batch, 3, size, size, device=setting.device).requires_grad_()

    def version(name: str, encoder_of: Callable[[Any], Callable[[Tensor], Tensor]]) -> Callable[[], Version]:
        def make() -> Version:
            encode = encoder_of(make_vae(family, build))
            return Version(name, lambda: [encode(images)], (images,))

        return make

    makers = {"ours": version("ours", our_encoder)}
    if setting.device.type == "cuda":
        makers["ours, no graph"] = version("ours, no graph", lambda vae: our_encoder(vae, graphs=False))
    if not setting.quick:
        makers["eager"] = version("eager", lambda vae: lambda given: plain_encode(vae, given))
    if not setting.quick and setting.device.type == "cuda":
        makers["torch.compile"] = version("torch.compile", compiled_encode)
    forward, both = encoder_work(family, build, batch)
    floors = {"forward": setting.floor(0, forward), "both": setting.floor(0, both)}

    def errors() -> dict[str, float]:
        return encoder_errors(family, build, images)

    counts = {"GFLOP forward": round(forward / 1e9), "GFLOP both": round(both / 1e9)}
    return GuidanceCase(name, makers, floors, counts, {"gradient error": ("%", errors)})


def family_case(name: str, family: Family, setting: Setting) -> GuidanceCase:
    """Guidance alone: "forward" encodes the views and asks for target and source, "backward" goes to the images."""
    build = Build(setting.device, setting.shrink > 1)
    views = 4 if family.name == "mvdream" else 1
    size = build.image_size(family)
    images = torch.rand(views, 3, size, size, device=setting.device).requires_grad_()

    def version(name: str, ours: bool) -> Callable[[], Version]:
        def make() -> Version:
            guide = guidance_of(make_prior(family, build, ours), views)
            return Version(name, lambda: [guide(images)], (images,))

        return make

    makers = {"ours": version("ours", True)}
    if not setting.quick:
        makers["eager"] = version("eager", False)
    flop, weights = network_work(family, build, 2 * views)
    forward, both = encoder_work(family, build, views) if family.vae is not None else (0.0, 0.0)
    floors = {
        "forward": setting.floor(weights, flop) + setting.floor(0, forward),
        "both": setting.floor(weights, flop) + setting.floor(0, both),
    }
    counts = {"views": views, "pixels a side": size, "GFLOP": round((flop + both) / 1e9)}
    return GuidanceCase(name, makers, floors, counts, {})


def guidance_of(prior: DiffusersPrior, views: int) -> Callable[[Tensor], Tensor]:
    """Images to a loss whose gradient is the guidance's: encode, noise, predict, combine."""
    words = encode_words(prior, PROMPT, GUIDANCE)
    device = words.text.tokens.device
    condition = views_of(views, device)
    t = torch.full((views,), TIME, device=device)

    def guide(images: Tensor) -> Tensor:
        x = prior.encode_image(images)
        noise = torch.randn(x.shape, device=device)
        grad_x = guidance_gradient(prior, x.detach(), t, noise, words, condition, GUIDANCE, STAGE)
        return (x * grad_x).sum()

    return guide


def views_of(n: int, device: torch.device) -> ViewCondition:
    """`n` views around the object, in front of white."""
    return ViewCondition(turntable_cameras(n, 0.3, 1.5, 0.9).to(device), torch.ones(n, 3, device=device))


def inputs_of(family: Family, build: Build, batch: int) -> tuple[Tensor, Tensor, Any]:
    """Noised x, network time and prompts."""
    channels, side = latent_shape(family, build)
    process = make_process(family, torch.device("cpu"))
    time = process.network_time(torch.full((batch,), TIME)).to(build.device)
    noised = torch.randn(batch, channels, side, side, device=build.device)
    return noised, time, random_words(family, build, batch)


def latent_shape(family: Family, build: Build) -> tuple[int, int]:
    """Channels and side of what the family noises."""
    size = build.image_size(family)
    if family.vae is None:
        return 3, size
    return family.vae.get("latent_channels", 4), size // 8


def predict_by(family: Family, network: Any, build: Build) -> Callable[..., Tensor]:
    """(noised, time, prompts) to the network's answer."""
    denoiser = make_denoiser(family, network, build)

    def answer(noised: Tensor, time: Tensor, words: Any) -> Tensor:
        condition = views_of(len(noised), noised.device) if family.name == "mvdream" else None
        with torch.no_grad():
            return denoiser(noised, time, words, condition)

    return answer


def graphed(network: Any, family: Family, build: Build) -> Callable[..., Tensor]:
    """The plain network recorded as it is."""
    answer, recorded = predict_by(family, network, build), {}

    def replay(*given: Any) -> Tensor:
        if not recorded:
            warm_up(lambda: answer(*given))
            recorded["graph"], recorded["answer"] = record(lambda: answer(*given))
        recorded["graph"].replay()
        return recorded["answer"]

    return replay


def plain_encode(vae: Any, images: Tensor) -> Tensor:
    """Mean latents by diffusers' own code."""
    pixels = (2 * images - 1).to(next(vae.parameters()).dtype)
    return vae.encode(pixels).latent_dist.mode().float()


def compiled_encode(vae: Any) -> Callable[[Tensor], Tensor]:
    """The same, compiled, channels-last."""
    vae.to(memory_format=torch.channels_last)
    return torch.compile(lambda images: plain_encode(vae, images), dynamic=False)


def encoder_errors(family: Family, build: Build, images: Tensor) -> dict[str, float]:
    """Percent by which ours and the plain half-precision gradient differ from float32's, for the same weights."""
    vae = make_vae(family, build)
    probe = torch.randn(plain_encode(vae, images).shape, device=build.device)

    def gradient(encode: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.autograd.grad(encode(images), images, probe)[0].double()

    found = {"ours": gradient(our_encoder(vae)), "eager": gradient(lambda given: plain_encode(vae, given))}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = gradient(lambda given: plain_encode(vae.float(), given))
    return {name: 100 * relative_error(value, exact) for name, value in found.items()}


def compiled_error(family: Family, build: Build, network_inputs: Sequence[Any]) -> float:
    """Percent by which the compiled network's answer differs from the plain one's, for the same weights."""
    network = make_network(family, build)
    plain = predict_by(family, network, build)(*network_inputs).double()
    ours = predict_by(family, our_network(network, "on"), build)(*network_inputs).double()
    return 100 * relative_error(ours, plain)


def network_work(family: Family, build: Build, batch: int) -> tuple[float, float]:
    """Operations of a prediction for `batch` samples, and bytes of the weights."""
    meta = Build(torch.device("meta"), build.tiny)
    network = make_network(family, meta)
    answer = predict_by(family, network, meta)
    with FlopCounterMode(display=False) as counter:
        answer(*inputs_of(family, meta, batch))
    return float(counter.get_total_flops()), build.dtype(family).itemsize * float(n_parameters(network))


def encoder_work(family: Family, build: Build, batch: int) -> tuple[float, float]:
    """Operations of encoding `batch` images, forward, and with the gradient with respect to the images."""
    meta = Build(torch.device("meta"), build.tiny)
    size = meta.image_size(family)
    images = torch.rand(batch, 3, size, size, device="meta").requires_grad_()
    vae, counts = make_vae(family, meta), []
    with FlopCounterMode(display=False) as counter:
        z = plain_encode(vae, images)
        counts.append(float(counter.get_total_flops()))
        torch.autograd.grad(z, images, torch.empty_like(z))
        counts.append(float(counter.get_total_flops()))
    return counts[0], counts[1]
