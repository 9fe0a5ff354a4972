"""How long `nerf-bridge generate` takes with its defaults, from the process's start to the mesh file and to its end.

    python -m benchmarks.generate --device cuda
    python -m benchmarks.generate --profile "a green armchair"

Each prompt is made in a process of its own, in a folder that is thrown away; the kernels are built before. The stages
come from the runs' records: `start` is all that comes before the prior is loaded, Python and its imports included. It
writes benchmarks/results/generate-<device>.json. `--profile` makes one prompt within cProfile and prints what takes
the time in the host's code.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from nerf_bridge.device import resolve_device
from nerf_bridge.errors import RunError, UserError
from nerf_bridge.evaluate.measures import Spread
from nerf_bridge.evaluate.results import Row, format_table, spread_row, write_results
from nerf_bridge.ops.backend import resolve_backend
from nerf_bridge.run.directory import RunDirectory, read_record

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ("a green armchair", "a blue chair", "a red sofa")
LINES = 40  # of the profile
AIM_S = {"cuda": 15.0, "cpu": 240.0}  # to the mesh file: one H100, and two CPU cores


def measure(prompt: str, words: Sequence[str], folder: Path) -> tuple[dict[str, float], dict]:
    """Seconds of the whole process, to the asset and of each stage, and the run's record.

    Raises:
        RunError: the command failed; says how it ended.
    """
    command = [sys.executable, "-m", "nerf_bridge", "generate", prompt, "--out", str(folder), *words]
    begin = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ, check=False)
    wall = time.perf_counter() - begin
    if ended.returncode != 0:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"generate {prompt!r} ended with status {ended.returncode}: {last}")
    record = read_record(RunDirectory(folder))
    return {"wall": wall, "to_asset": record["seconds_to_asset"], **record["seconds"]}, record


def rows_of(case: str, runs: Sequence[dict[str, float]], aim: float | None = None) -> list[Row]:
    """A row for each figure: its median over the runs, least and most; the floor of `to_asset` is the project's aim."""
    rows = []
    for name in runs[0]:
        values = sorted(run[name] for run in runs)
        figure = Spread(statistics.median(values), values[0], values[-1])
        rows.append(spread_row(case, name, figure, "s", floor=aim if name == "to_asset" else None))
    return rows


def measure_all(
    prompts: Sequence[str], n_runs: int, words: Sequence[str], folder: Path, aim: float
) -> tuple[list[Row], dict]:
    """The rows of all runs together and of each prompt, and a run's record. Raises RunError as `measure`."""
    rows: list[Row] = []
    every: list[dict[str, float]] = []
    for prompt in prompts:
        found = []
        for _ in tqdm(range(n_runs), prompt):
            seconds, record = measure(prompt, words, folder / str(len(every) + len(found)))
            found.append(seconds)
        every += found
        rows += rows_of(prompt, found)
    return rows_of("all", every, aim) + rows, record


def profile(prompt: str, words: Sequence[str], folder: Path) -> str:
    """What cProfile finds, by cumulative time, and by the functions' own."""
    file = folder / "profile"
    command = [sys.executable, "-m", "cProfile", "-o", str(file), "-m", "nerf_bridge", "generate", prompt]
    subprocess.run([*command, "--out", str(folder / "run"), *words], cwd=ROOT, check=True)
    program = f"import pstats; p = pstats.Stats({str(file)!r}); p.sort_stats('cumtime').print_stats({LINES}); "
    program += f"p.sort_stats('tottime').print_stats({LINES})"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--runs", type=int, default=2, help="processes for each prompt; the first finds cold files")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--profile", metavar="PROMPT", help="make this one within cProfile, and print where time goes")
    parser.add_argument("options", nargs="*", help="after --: options of generate")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        device = resolve_device(chosen.device)
        resolve_backend("auto", device)  # builds the kernels
        words = ["--device", device.type, *chosen.options]
        with tempfile.TemporaryDirectory(prefix="nerf-bridge-generate-") as folder:
            if chosen.profile:
                print(profile(chosen.profile, words, Path(folder)))
                return 0
            rows, record = measure_all(chosen.prompts, chosen.runs, words, Path(folder), AIM_S[device.type])
        about = {"note": f"options: {' '.join(words)}; p10 and p90 are the least and the most"}
        path = write_results(chosen.results, "generate", record["device"], record["versions"], rows, about)
        print(format_table(rows))
        print(path)
    except (UserError, RunError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
