"""How soon guidance runs: the first step once the models are on the GPU, and when the compiled network takes over.

    python -m benchmarks.guidance_start --cache DIR           one line of JSON; benchmarks.guidance calls it twice

With a new DIR nothing is compiled; the second time everything that can be kept is in it. A step here is the guidance
alone: encode, predict, and the gradient with respect to the image.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.guidance_cases import guidance_of
from benchmarks.guidance_models import FAMILIES, Build, make_prior
from nerf_bridge.prior.models.fast_network import FastNetwork

AFTERWARDS = 20  # steps with the compiled network
PATIENCE = 240.0  # seconds to wait for it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; 0."""
    parser = argparse.ArgumentParser(description="Time the first guidance step and the compilation.")
    parser.add_argument("--family", choices=FAMILIES, default="sd21", help="the model (default: sd21)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where (default: cuda)")
    parser.add_argument("--cache", type=Path, required=True, help="folder of what is compiled")
    parser.add_argument("--tiny", action="store_true", help="a trial's sizes")
    options = parser.parse_args(arguments)
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        os.environ[name] = str(options.cache.resolve() / name.split("_")[0].lower())
    print(json.dumps(measure(options.family, Build(torch.device(options.device), options.tiny))))
    return 0


def measure(name: str, build: Build) -> dict[str, float]:
    """Seconds: "load" (building, on the device), "first step", "compiled after"; the median "plain", "meanwhile" and
    "compiled" step, and the "slowest meanwhile", the swap in it."""
    torch.manual_seed(0)
    family, views = FAMILIES[name], 4 if name == "mvdream" else 1
    began = time.perf_counter()
    prior = make_prior(family, build, ours=True, when="auto")
    guide, size = guidance_of(prior, views), build.image_size(family)
    images = torch.rand(views, 3, size, size, device=build.device).requires_grad_()
    _wait(build)
    ready = time.perf_counter()
    seconds = [_step(guide, images, build)]
    network = prior.denoiser.network
    while isinstance(network, FastNetwork) and not _swapped(network) and time.perf_counter() - ready < PATIENCE:
        seconds.append(_step(guide, images, build))
    swapped = time.perf_counter()
    after = [_step(guide, images, build) for _ in range(AFTERWARDS)]
    meanwhile = seconds[1:] or seconds
    return {
        "load": ready - began,
        "first step": seconds[0],
        "compiled after": swapped - ready,
        "step meanwhile": statistics.median(meanwhile),
        "slowest meanwhile": max(meanwhile),
        "step afterwards": statistics.median(after),
        "swapped": float(isinstance(network, FastNetwork) and _swapped(network)),
    }


def _swapped(network: FastNetwork) -> bool:
    return all(recording.compiled for recording in network.recordings.values())


def _step(guide: object, images: torch.Tensor, build: Build) -> float:
    """Seconds of one step, to its end on the device."""
    began = time.perf_counter()
    torch.autograd.grad(guide(images), images)  # type: ignore[operator]
    _wait(build)
    return time.perf_counter() - began


def _wait(build: Build) -> None:
    if build.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
