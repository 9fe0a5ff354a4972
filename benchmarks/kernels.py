"""Times the kernels, beside torch eager, torch.compile and the peers that are installed, all in one run.

    python -m benchmarks.kernels                              everything (minutes on a GPU)
    python -m benchmarks.kernels --quick                      our own versions only
    python -m benchmarks.kernels --device cpu                 pictures 8 times smaller on a side, to see that it runs
    python -m benchmarks.kernels --cases march_512 render_512
    python -m benchmarks.kernels --cases march_512 march_4x64 composite_512 --versions nerfacc    ours beside one peer

It writes benchmarks/results/kernels-<device>.json (`benchmarks/report.py` makes the table and the plot of
docs/performance.md from it) and prints the table. Times are medians; "forward" is the forward pass as training runs it,
"backward" what follows it, "both" their sum in one go.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.gradient_errors import Check
from benchmarks.kernel_cases import Case, Setting, Version, adam_case, composite_case, grid_mlp_case, march_case
from benchmarks.render_cases import render_case
from benchmarks.report import results_path, save_results, summary
from benchmarks.timing import GIB, Ceilings, Clock, Timing, measure_ceilings, peak_gib, time_stages
from nerf_bridge.errors import UserError, one_line
from nerf_bridge.evaluate.results import commit
from nerf_bridge.ops.backend import resolve_backend

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
CPU_THREADS = 2
SHRINK_ON_CPU = 8
MEMORY_SHARE = 0.9  # of the free memory that a version may be known to need
CASES: dict[str, Callable[[str, Setting], Sequence[Callable[[], Case]]]] = {
    "march_512": lambda name, of: [lambda: march_case(name, 1, 512, of)],
    "march_4x64": lambda name, of: [lambda: march_case(name, 4, 64, of)],
    "composite_512": lambda name, of: [lambda: composite_case(name, 1, 512, of)],
    "grid_mlp_2e18": lambda name, of: [lambda o=o: grid_mlp_case(name, 18, o, of) for o in ("random", "rays")],
    "grid_mlp_2e20": lambda name, of: [lambda o=o: grid_mlp_case(name, 20, o, of) for o in ("random", "rays")],
    "grid_mlp_2e22": lambda name, of: [lambda o=o: grid_mlp_case(name, 22, o, of) for o in ("random", "rays")],
    "render_512": lambda name, of: [lambda: render_case(name, 1, 512, of)],
    "render_4x64": lambda name, of: [lambda: render_case(name, 4, 64, of)],
    "adam_grid": lambda name, of: [lambda: adam_case(name, of)],
    "cpu_render_4x64": lambda name, of: [lambda: render_case(name, 4, 64, on_cpu(of))],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when done, 1 when a case failed, 2 with one line when it cannot start."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # the twins' graph breaks are known
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    try:
        device = torch.device(options.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: torch sees no CUDA GPU; use --device cpu for a run of smaller sizes")
        backend = resolve_backend(device.type, device)
        results = run(options.cases, device, backend, options)
        out = options.out or results_path("kernels", results)
        save_results(results, out)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(summary(results, out))
    return int(any(": failed: " in line for line in results["left_out"]))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time the kernels, beside torch and the peers that are installed.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where they run (default: cuda)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--quick", action="store_true", help="our own versions only, with a third of the repetitions")
    parser.add_argument(
        "--versions", nargs="+", metavar="NAME", help="ours, and only those others whose names begin so (default: all)"
    )
    parser.add_argument("--flush-l2", action="store_true", help="overwrite the level-2 cache before every repetition")
    parser.add_argument("--seconds", type=float, default=0.6, help="time for one measurement (default: 0.6)")
    parser.add_argument("--shrink", type=int, help="pictures so many times smaller on a side (default: 1; 8 on a CPU)")
    parser.add_argument("--out", type=Path, help="the results (default: benchmarks/results/kernels-<device>.json)")
    options = parser.parse_args(arguments)
    options.shrink = options.shrink or (SHRINK_ON_CPU if options.device == "cpu" else 1)
    if not (1 <= options.shrink <= 64 and options.seconds > 0):
        parser.error("expected --shrink from 1 to 64 and --seconds above 0")
    return options


def run(names: Sequence[str], device: torch.device, backend: str, options: argparse.Namespace) -> dict[str, object]:
    """All cases; what the results file holds."""
    torch.manual_seed(0)
    torch.set_num_threads(min(CPU_THREADS, torch.get_num_threads()))
    clock = Clock(device, options.seconds / 3 if options.quick else options.seconds, options.flush_l2)
    ceilings = measure_ceilings(clock)
    setting = Setting(device, backend, options.shrink, options.quick, ceilings)
    makers = [(name, maker) for name in names for maker in CASES[name](name, setting)]
    rows, left_out = ceiling_rows(ceilings), []
    with tqdm(makers, desc="kernels", unit="case") as bar:
        for name, maker in bar:
            try:
                of_case, missing = run_case(chosen(maker(), options.versions), clock, bar)
            except (RuntimeError, TypeError, ValueError) as error:  # what was measured before must not be lost
                logger.exception("%s failed", name)
                of_case, missing = [], [f"{name}: failed: {one_line(error, 160)}"]
            rows += of_case
            left_out += missing
    return record(device, options, rows, left_out)


def chosen(case: Case, names: Sequence[str] | None) -> Case:
    """The case with our first version and those whose names begin with one of `names`; None: all."""
    if names is None:
        return case
    first, *others = case.versions
    return replace(case, versions=[first, *(other for other in others if other.name.startswith(tuple(names)))])


def run_case(case: Case, clock: Clock, bar: tqdm) -> tuple[list[dict], list[str]]:
    """The rows of a case, and which versions were left out, with the reason."""
    clock = replace(clock, device=case.device)
    measured: dict[str, dict[str, Timing]] = {}
    left_out = []
    for version in case.versions:
        bar.set_postfix_str(f"{case.name}: {version.name}")
        try:
            if not fits(version, clock.device):
                raise RuntimeError(f"would not fit into memory ({version.needs / GIB:.0f} GiB)")
            measured[version.name] = measure(version, clock)
        except RuntimeError as error:  # torch's own failures too: a peer that cannot do it must not end the others
            if version is case.versions[0]:
                raise
            left_out.append(f"{case.name}, {version.name}: {one_line(error, 160)}")
            logger.warning("left out: %s", left_out[-1])
    return case_rows(case, measured) + check_rows(case.name, case.checks), left_out


def check_rows(name: str, checks: Mapping[str, Check]) -> list[dict]:
    """A row for every figure beside the times, of ours and every peer."""
    rows = []
    for metric, (unit, check) in checks.items():
        values = check()
        row: dict = {"case": name, "metric": metric, "value": rounded(values["ours"]), "unit": unit}
        peers = [{"peer": peer, "peer_value": rounded(value)} for peer, value in values.items() if peer != "ours"]
        rows += [row | peer for peer in peers] or [row]
    return rows


def fits(version: Version, device: torch.device) -> bool:
    """Whether what the version is known to need is free."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return version.needs <= MEMORY_SHARE * free


def measure(version: Version, clock: Clock) -> dict[str, Timing]:
    """Timings by metric, and the peak memory in GiB as "memory" where it is counted."""
    outputs: Sequence[Tensor] = version.forward()
    grads = [torch.randn_like(out) for out in outputs if version.leaves]

    def forward() -> None:
        nonlocal outputs
        outputs = version.forward()

    def backward() -> None:
        torch.autograd.grad(outputs, version.leaves, grads)

    stages = [forward, backward] if version.leaves else [forward]
    timings = time_stages(stages, clock)
    names = ("forward", "backward", "both") if version.leaves else ("forward",)
    measured = dict(zip(names, timings, strict=False))
    outputs = ()
    memory = peak_gib(lambda: [stage() for stage in stages], clock.device)
    return measured if memory is None else measured | {"memory": Timing(memory, memory, memory, 1)}


def case_rows(case: Case, measured: dict[str, dict[str, Timing]]) -> list[dict]:
    """A row for every metric of our version and every peer; then the sizes of the case."""
    ours, peers = measured[case.versions[0].name], list(measured.items())[1:]
    rows = []
    for metric, timing in ours.items():
        own: dict = {"case": case.name, "metric": metric, "value": rounded(timing.median)}
        own |= (
            {"unit": "GiB"}
            if metric == "memory"
            else {"unit": "ms", "p10": rounded(timing.p10), "p90": rounded(timing.p90)}
            | {"repetitions": timing.repetitions}
        )
        own |= {"floor": rounded(case.floors[metric])} if metric in case.floors else {}
        others = [own | {"peer": name} | of_peer(metric, of[metric]) for name, of in peers if metric in of]
        rows += others or [own]
    return rows + [{"case": case.name, "metric": name, "value": n, "unit": "count"} for name, n in case.counts.items()]


def of_peer(metric: str, timing: Timing) -> dict[str, float]:
    """A peer's value and, of a time, its spread and how often it was taken."""
    value = {"peer_value": rounded(timing.median)}
    if metric == "memory":
        return value
    spread = {"peer_p10": rounded(timing.p10), "peer_p90": rounded(timing.p90)}
    return value | spread | {"peer_repetitions": timing.repetitions}


def ceiling_rows(ceilings: Ceilings) -> list[dict]:
    """What the device does at best, as rows of the case "ceiling"."""
    values = (
        ("copy", ceilings.copy / 1e12, "TB/s"),
        ("matrix product", ceilings.matrix / 1e12, "TFLOP/s"),
        ("gathers from 2 MiB", ceilings.gathers[0] / 1e9, "G/s"),
        ("gathers from 32 MiB", ceilings.gathers[1] / 1e9, "G/s"),
    )
    return [{"case": "ceiling", "metric": name, "value": rounded(value), "unit": unit} for name, value, unit in values]


def record(
    device: torch.device, options: argparse.Namespace, rows: list[dict], left_out: list[str]
) -> dict[str, object]:
    """The results file."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if device.type == "cuda":
        versions |= {"cuda": str(torch.version.cuda)}
    return {
        "device": name,
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": versions,
        "settings": {
            "shrink": options.shrink,
            "quick": options.quick,
            "flush_l2": options.flush_l2,
            "threads": torch.get_num_threads(),
        },
        "left_out": left_out,
        "rows": rows,
    }


def on_cpu(setting: Setting) -> Setting:
    """The same sizes on the CPU, with its own ceilings."""
    cpu = torch.device("cpu")
    if setting.device == cpu:
        return setting
    return replace(
        setting, device=cpu, backend=resolve_backend("cpu", cpu), ceilings=measure_ceilings(Clock(cpu, 0.2, False))
    )


def rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


if __name__ == "__main__":
    sys.exit(main())
