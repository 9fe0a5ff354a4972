"""How soon a run moves: its first step once the models are on the GPU, and when the compiled network takes over.

    python -m benchmarks.guidance_start --cache DIR           one line of JSON; benchmarks.guidance calls it twice

With a new DIR nothing is compiled; the second time everything that can be kept is in it. torch.compile starts in
the second step. A step is the whole one of `optimize.training_step` with SD 2.1-base's sizes at 64 x 64, as in the case
`step_64`; the first one's time also holds what is prepared when the models come to the GPU (the encoder's weights laid
out, its precision tried, its Triton kernels compiled) and the making of the scene. The package's own kernels are built
beforehand.
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

from benchmarks.guidance_cases import PROMPT
from benchmarks.guidance_models import FAMILIES, Build, unplaced_prior
from benchmarks.guidance_steps import NO_UPDATES, STEP_CASES, Runner, make_scene, run_step, step_config
from nerf_bridge.draws import Draws
from nerf_bridge.guidance import encode_words
from nerf_bridge.memory.ladder import RUNGS
from nerf_bridge.ops.backend import resolve_backend
from nerf_bridge.optimize import view_renderer
from nerf_bridge.prior.models.fast_network import FastNetwork
from nerf_bridge.run.state import build_optimiser

AFTERWARDS = 20  # steps with the compiled network
PATIENCE = 240.0  # seconds to wait for it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; 0."""
    parser = argparse.ArgumentParser(description="Time the first step of a run, and the compilation.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where (default: cuda)")
    parser.add_argument("--cache", type=Path, required=True, help="folder of what is compiled")
    parser.add_argument("--shrink", type=int, default=1, help="tiny networks, pictures so many times smaller")
    options = parser.parse_args(arguments)
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        os.environ[name] = str(options.cache.resolve() / name.split("_")[0].lower())
    print(json.dumps(measure(torch.device(options.device), options.shrink)))
    return 0


def measure(device: torch.device, shrink: int) -> dict[str, float]:
    """Seconds: "load" (random weights made on the device); from there "prepared", "first step" (its end) and "compiled
    after"; the median "step meanwhile" and "step afterwards", with the compiled network; and the "slowest
    meanwhile", the swap in it."""
    torch.manual_seed(0)
    backend = resolve_backend(device.type, device)
    began = time.perf_counter()
    prior = unplaced_prior(FAMILIES["sd21"], Build(device, shrink > 1), ours=True, when="auto")
    _wait(device)
    ready = time.perf_counter()
    prior.place(RUNGS[0])
    _wait(device)
    prepared = time.perf_counter() - ready
    case = STEP_CASES["step_64"]("start")
    config = step_config(case, shrink)
    scene = make_scene(case, config, backend, device)
    words = encode_words(prior, PROMPT, config.guidance)
    draws = Draws(config, words, prior.view_group, device)
    runner = Runner(scene, build_optimiser(scene, config), prior, config, view_renderer(scene, 0), draws)
    _step(runner, 0)
    first = time.perf_counter() - ready
    network, seconds = prior.denoiser.network, []
    while isinstance(network, FastNetwork) and not _swapped(network) and time.perf_counter() - ready < PATIENCE:
        seconds.append(_step(runner, _later(len(seconds))))
    swapped = time.perf_counter()
    after = [_step(runner, _later(n)) for n in range(AFTERWARDS)]
    meanwhile = seconds or [first]
    return {
        "load": ready - began,
        "prepared": prepared,
        "first step": first,
        "compiled after": swapped - ready,
        "step meanwhile": statistics.median(meanwhile),
        "slowest meanwhile": max(meanwhile),
        "step afterwards": statistics.median(after),
        "swapped": float(isinstance(network, FastNetwork) and _swapped(network)),
    }


def _later(n: int) -> int:
    """The number of the `n`-th step after the first: never one that updates the occupancy or grows the pictures."""
    return 1 + n % (NO_UPDATES - 1)


def _swapped(network: FastNetwork) -> bool:
    return all(recording.compiled for recording in network.recordings.values())


def _step(of: Runner, step: int) -> float:
    """Seconds of one step, to its end on the device."""
    began = time.perf_counter()
    run_step(of, step)
    _wait(of.scene.device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
