"""Times the guidance with the big priors, and the whole step with it, beside plain eager versions in the same run.

    python -m benchmarks.guidance                             everything (about 25 minutes on a GPU)
    python -m benchmarks.guidance --quick                     our own versions only
    python -m benchmarks.guidance --cases unet_b2 vae_512 start
    python -m benchmarks.guidance --cases guidance --families sdxl sd3 flux --add      keep the other cases' results
    python -m benchmarks.guidance --device cpu --shrink 32    tiny networks, to see that it runs

The networks have the published sizes and random weights: nothing is downloaded. It writes
benchmarks/results/guidance-<device>.json and prints the table. Times are medians with 10th and 90th percentile, taken
back to back; "forward", "backward" and "both" are those of one guidance, "step" is a whole optimisation step and
"render" to "optimiser" its parts.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch
from tqdm import tqdm

from benchmarks.guidance_cases import GuidanceCase, family_case, unet_case, vae_case
from benchmarks.guidance_models import FAMILIES
from benchmarks.guidance_steps import STEP_CASES, StepCase, StepCounts, step_floors, time_step
from benchmarks.kernel_cases import Case, Setting, Version
from benchmarks.kernels import ROOT, case_rows, ceiling_rows, check_rows, measure, record, rounded
from benchmarks.report import not_measured, results_path, save_results, summary
from benchmarks.timing import Clock, Timing, measure_ceilings
from nerf_bridge.errors import UserError, one_line
from nerf_bridge.ops.backend import resolve_backend

logger = logging.getLogger(__name__)

KINDS = ("ours", "eager, our render", "eager")
ALONE: dict[str, Callable[[str, Setting], GuidanceCase]] = {
    "unet_b2": lambda name, setting: unet_case(name, setting, 2),
    "vae_512": lambda name, setting: vae_case(name, setting, 1),
    "vae_512_b4": lambda name, setting: vae_case(name, setting, 4),
}
CASES = (*ALONE, *STEP_CASES, "guidance", "start")
ROWS_OF = (*ALONE, *STEP_CASES, *(f"guidance_{family}" for family in FAMILIES), "start")  # as the results name them
START_SECONDS = 560.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when done, 1 when a case failed, 2 with one line when it cannot start."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    diffusers.utils.logging.set_verbosity_error()
    try:
        device = torch.device(options.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: torch sees no CUDA GPU; use --device cpu --shrink 32 for a trial")
        results = run(options, device, resolve_backend(device.type, device))
        out = options.out or results_path("guidance", results)
        if options.add and out.exists():
            results = joined(json.loads(out.read_text(encoding="utf-8")), results)
        save_results(results, out)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(summary(results, out))
    return int(any(": failed: " in line for line in results["left_out"]))


def parse(arguments: Sequence[str] | None) -> Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time the guidance with the big priors, and whole steps.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where (default: cuda)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument(
        "--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="FAMILY",
        help=f"of the case guidance: {', '.join(FAMILIES)}",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="our own versions only, with a third of the repetitions")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for one measurement (default: 1)")
    parser.add_argument(
        "--shrink", type=int, help="tiny networks, pictures so many times smaller (default: 1; CPU: 32)"
    )
    parser.add_argument("--out", type=Path, help="the results (default: benchmarks/results/guidance-<device>.json)")
    parser.add_argument("--add", action="store_true", help="keep what the results file has of other cases")
    options = parser.parse_args(arguments)
    options.shrink = options.shrink or (32 if options.device == "cpu" else 1)
    options.flush_l2 = False
    if not (1 <= options.shrink <= 32 and options.seconds > 0):
        parser.error("expected --shrink from 1 to 32 and --seconds above 0")
    return options


def run(options: Namespace, device: torch.device, backend: str) -> dict[str, Any]:
    """All cases; what the results file holds. After each case, what was measured is there even if a later one fails."""
    torch.manual_seed(0)
    clock = Clock(device, options.seconds / 3 if options.quick else options.seconds, False)
    ceilings = measure_ceilings(clock)
    setting = Setting(device, backend, options.shrink, options.quick, ceilings)
    rows, left_out = ceiling_rows(ceilings), []
    with tqdm(jobs(options, setting, clock), desc="guidance", unit="case") as bar:
        for name, job in bar:
            bar.set_postfix_str(name)
            try:
                of_case, missing = job()
            except (RuntimeError, TypeError, ValueError) as error:  # what was measured before must not be lost
                logger.exception("%s failed", name)
                of_case, missing = [], [f"{name}: failed: {one_line(error, 160)}"]
            rows += of_case
            left_out += missing
            free(device)
            logger.info("%s", json.dumps(of_case))
    return record(device, options, rows, left_out) | {"not_measured": not_measured(ROWS_OF, rows)}


Job = Callable[[], tuple[list[dict], list[str]]]


def jobs(options: Namespace, setting: Setting, clock: Clock) -> list[tuple[str, Job]]:
    """What is to be done, by name."""
    wanted: list[tuple[str, Job]] = []
    for name in options.cases:
        if name in ALONE:
            wanted.append((name, lambda name=name: run_alone(ALONE[name](name, setting), clock)))
        elif name in STEP_CASES:
            wanted.append((name, lambda name=name: run_step(STEP_CASES[name](name), setting, clock)))
        elif name == "guidance":
            for family in options.families:
                title = f"guidance_{family}"
                wanted.append((title, lambda t=title, f=family: run_alone(family_case(t, FAMILIES[f], setting), clock)))
        else:
            wanted.append((name, lambda: run_start(setting)))
    return wanted


def run_alone(case: GuidanceCase, clock: Clock) -> tuple[list[dict], list[str]]:
    """The rows of a case, and which versions were left out, with the reason."""
    measured: dict[str, dict[str, Timing]] = {}
    left_out = []
    for name, make in case.makers.items():
        free(clock.device)
        try:
            measured[name] = measure(make(), clock)
        except RuntimeError as error:  # too little memory for a peer must not end the others
            if name == "ours":
                raise
            left_out.append(f"{case.name}, {name}: {one_line(error, 160)}")
    rows = rows_of(case.name, measured, case.floors, case.counts, clock)
    free(clock.device)
    return rows + check_rows(case.name, case.checks), left_out


def run_step(case: StepCase, setting: Setting, clock: Clock) -> tuple[list[dict], list[str]]:
    """The rows of a whole step and of its parts."""
    measured: dict[str, dict[str, Timing]] = {}
    counts: dict[str, StepCounts] = {}
    left_out = []
    for kind in KINDS[:1] if setting.quick else KINDS:
        free(setting.device)
        try:
            measured[kind], counts[kind] = time_step(case, setting, clock, kind)
        except RuntimeError as error:
            if kind == "ours":
                raise
            left_out.append(f"{case.name}, {kind}: {one_line(error, 160)}")
    ours = counts[KINDS[0]]
    return rows_of(case.name, measured, step_floors(ours, setting), asdict(ours), clock), left_out


def run_start(setting: Setting) -> tuple[list[dict], list[str]]:
    """First step and compilation in two fresh processes, the second with what the first one kept."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in ("start, empty cache", "start, second run"):
            command = [sys.executable, "-m", "benchmarks.guidance_start", "--cache", folder]
            command += ["--device", setting.device.type, "--shrink", str(setting.shrink)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, cwd=ROOT)
            if done.returncode:
                raise RuntimeError(done.stderr.strip()[-300:])
            figures = json.loads(done.stdout.strip().splitlines()[-1])
            rows += [
                {"case": case, "metric": name, "value": rounded(value), "unit": "" if name == "swapped" else "s"}
                for name, value in figures.items()
            ]
            remarks = [line for line in done.stderr.splitlines() if "compile" in line]
            logger.info("%s: %s %s", case, figures, " ".join(remarks))
    return rows, []


def rows_of(name: str, measured: dict[str, dict[str, Timing]], floors: dict, counts: dict, clock: Clock) -> list[dict]:
    """The rows of a case; the first of `measured` is ours."""
    versions = [Version(version, list) for version in measured]
    return case_rows(Case(name, clock.device, versions, floors, counts), measured)


def joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The new results with the rows of cases that were not run again, which name their commit where it is another.

    Raises:
        UserError: the old results are of another device, other versions or other settings.
    """
    for key in ("device", "versions", "settings"):
        if old[key] != new[key]:
            raise UserError(f"--add: the results file is of the {key} {old[key]!r}, this run of {new[key]!r}")
    again = {row["case"] for row in new["rows"]}
    stems = {case.split(",")[0] for case in again}
    kept = [{"commit": old["commit"]} | row for row in old["rows"] if row["case"] not in again]
    kept = [{k: v for k, v in row.items() if (k, v) != ("commit", new["commit"])} for row in kept]
    remarks = [line for line in old["left_out"] if line.split(",")[0].split(":")[0] not in stems]
    rows = new["rows"] + kept
    return new | {"rows": rows, "left_out": new["left_out"] + remarks, "not_measured": not_measured(ROWS_OF, rows)}


def free(device: torch.device) -> None:
    """Give back what the last version took."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
