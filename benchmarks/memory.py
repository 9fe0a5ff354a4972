"""Peak memory of a step with Stable Diffusion 2.1 base, on every memory preset and rung, as on a smaller GPU.

    python -m benchmarks.memory                            every case, 6 steps each, on the GPU (minutes)
    python -m benchmarks.memory --cases 8gb_256 24gb_512   some of them
    python -m benchmarks.memory --device cpu --shrink 16   a small network on the CPU, to see that it runs

The network has the published architecture and random weights, written once as a folder in diffusers' format and loaded
by the code that loads the published one. The scene is the initial blob with the settings of `published-3d`. A preset's
case may take no more of the GPU than that preset's size (`torch.cuda.set_per_process_memory_fraction`); the case of a
rung may take all. The network is compiled before the first step (`model.compile on`): what that takes is in the
peak. Written: benchmarks/results/memory-<device>.json: for each case the peak of a run (prompts, loading, steps), the
estimate beforehand, the rung of the memory ladder where it began and where it ended.
"""

from __future__ import annotations

import argparse
import gc
import logging
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.random_models import write_stable_diffusion
from benchmarks.report import not_measured, results_path, save_results, summary
from benchmarks.timing import GIB
from nerf_bridge.config import GenerateConfig, build_config
from nerf_bridge.errors import RunError, UserError, one_line
from nerf_bridge.evaluate.results import commit
from nerf_bridge.memory.estimate import needs_on
from nerf_bridge.memory.ladder import RUNGS, find_preset, within_preset
from nerf_bridge.memory.model_sizes import read_sizes
from nerf_bridge.memory.preflight import MemoryPlan, plan_memory
from nerf_bridge.ops.backend import resolve_backend
from nerf_bridge.optimize import optimise
from nerf_bridge.paths import config_path
from nerf_bridge.pipeline import words_of
from nerf_bridge.prior import find_prior, load_prior
from nerf_bridge.prior.models.folder import ModelFolder
from nerf_bridge.run.directory import RunDirectory
from nerf_bridge.run.events import EventLog
from nerf_bridge.scene.scene import build_scene
from nerf_bridge.settings import load_yaml, merged

PEER, PEER_GIB = "threestudio-style step", {"64": 4.5, "512": 41.0}  # measured on one H100 by the same sizes
# Preset, pixels of a view in the first half of the steps and afterwards, rung (None: as the preset says).
CASES: dict[str, tuple[str, int, int, int | None]] = {
    "8gb_64": ("8gb", 64, 64, None),
    "8gb_256": ("8gb", 256, 256, None),
    "8gb_64_to_256": ("8gb", 64, 256, None),
    "12gb_384": ("12gb", 384, 384, None),
    "24gb_512": ("24gb", 512, 512, None),
    "80gb_512": ("80gb", 512, 512, None),
    **{f"rung_{rung.name}_512": ("auto", 512, 512, i) for i, rung in enumerate(RUNGS)},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when done, 1 when a case failed, 2 with one line when it cannot start."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        device = torch.device(options.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: torch sees no CUDA GPU; use --device cpu --shrink 16 for a trial")
        results = run(options, device)
        out = options.out or results_path("memory", results)
        save_results(results, out)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(summary(results, out))
    return int(bool(results["left_out"]))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the peak memory of a step on every preset and rung.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where it runs (default: cuda)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--steps", type=int, default=6, help="of each case, at least 2 (default: 6)")
    parser.add_argument("--shrink", type=int, default=1, help="network and views so many times smaller (default: 1)")
    parser.add_argument("--model", type=Path, help="a model's folder in place of the random one")
    parser.add_argument("--out", type=Path, help="the results (default: benchmarks/results/memory-<device>.json)")
    options = parser.parse_args(arguments)
    if not (1 <= options.shrink <= 32 and options.steps >= 2):
        parser.error("expected --shrink from 1 to 32 and --steps of at least 2")
    return options


def run(options: argparse.Namespace, device: torch.device) -> dict:
    """All cases; what the results file holds."""
    rows: list[dict] = []
    left_out: list[str] = []
    with tempfile.TemporaryDirectory() as folder, tqdm(options.cases, desc="memory", unit="case") as bar:
        model = options.model or write_stable_diffusion(Path(folder) / "model", device, options.shrink)
        for name in bar:
            bar.set_postfix_str(name)
            try:
                rows += run_case(name, model, device, options, Path(folder) / name)
            except (RunError, UserError, RuntimeError) as error:
                left_out.append(f"{name}: {one_line(error, 160)}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {
        "device": name,
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": versions | ({"cuda": str(torch.version.cuda)} if device.type == "cuda" else {}),
        "settings": {"shrink": options.shrink, "steps": options.steps},
        "left_out": left_out,
        "not_measured": not_measured(CASES, rows),
        "rows": rows,
    }


def case_config(name: str, model: Path, options: argparse.Namespace) -> GenerateConfig:
    """The settings of `published-3d` at one size of views, or growing; stage two is the second half of the steps."""
    memory, early, size, _ = CASES[name]
    early, size = max(early // options.shrink, 16), max(size // options.shrink, 16)
    changes = {
        "prompt": "a green armchair",
        "prior": str(model),
        "memory": memory,
        "steps": options.steps,
        "checkpoint_every": options.steps,
        "preview_every": options.steps,
        "render": {"size": size, "early_size": None if early == size else early, "early_until": 0.5},
        "guidance": {"bridge_from": 0.5},
        "model": {"compile": "on"},
    }
    return build_config(merged(load_yaml(config_path("published-3d.yaml")), changes))


def run_case(name: str, model: Path, device: torch.device, options: argparse.Namespace, place: Path) -> list[dict]:
    """The rows of a case.

    Raises:
        RunError: memory ran out below the last rung.
        UserError: the estimate says that it fits nowhere.
    """
    memory, _, size, forced = CASES[name]
    config = case_config(name, model, options)
    preset = find_preset(memory)
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(preset.gigabytes * 1e9 / total, 1.0) if preset else 1.0)
        torch.cuda.reset_peak_memory_stats(device)
    found = find_prior(config.prior, config.model)
    assert found is not None, "the model is a folder"
    plan = plan_memory(config, device, found, known=True)
    if forced is not None:
        sizes = read_sizes(found, config.model, device.type == "cuda")
        needs = needs_on(RUNGS[forced], config, sizes, device.type == "cuda")
        plan = replace(plan, rung=forced, needs=needs)
    last = steps_on(config, device, plan, found, place)
    rows = [
        {"case": name, "metric": "estimate", "value": round(plan.needs.total / GIB, 3), "unit": "GiB"},
        {"case": name, "metric": "rung at the start", "value": plan.rung, "unit": "count"},
        {"case": name, "metric": "rung at the end", "value": last, "unit": "count"},
    ]
    if device.type != "cuda":
        return rows
    peaks = (
        ("peak allocated", torch.cuda.max_memory_allocated(device)),
        ("peak reserved", torch.cuda.max_memory_reserved(device)),
    )
    peer = {"peer": PEER, "peer_value": PEER_GIB[str(size)]} if str(size) in PEER_GIB else {}
    measured = [{"case": name, "metric": m, "value": round(b / GIB, 3), "unit": "GiB"} | peer for m, b in peaks]
    return [*measured, *rows]


def steps_on(config: GenerateConfig, device: torch.device, plan: MemoryPlan, found: ModelFolder, place: Path) -> int:
    """Load the prior, encode the prompts and take the steps, as `generate` does; the rung where it ended."""
    place.mkdir(parents=True)
    (place / "previews").mkdir()
    config = within_preset(config)
    prior = load_prior(config.prior, device, config.model, found, plan.words_device)
    words = words_of(config, prior)
    scene = build_scene(config, resolve_backend("auto", device), device)
    with EventLog(place / "events.jsonl") as log:
        return optimise(RunDirectory(place), config, scene, prior, words, log, plan.rung).rung


if __name__ == "__main__":
    sys.exit(main())
