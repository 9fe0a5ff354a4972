"""The whole training of the embedded prior again, by one command from the public package of models to weights.

    python -m nerf_bridge.prior.retrain --package sweethome3d-furniture_1.8-1_all.deb --out retrained

It packs the models into OUT/library.npz and then does RUNS, each from the weights of the one before, in a folder of its
own; the last folder is OUT/weights. What is finished is not done again: stopped, the same command goes on with the run
that it was in from the weights that were kept last, a dozen times a run, for the rest of its minutes.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nerf_bridge.errors import RunError, UserError
from nerf_bridge.prior.data import pack

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One training: GPUs, minutes on so many, its seed, and other options of `nerf_bridge.prior.train`."""

    gpus: int
    minutes: float
    seed: int
    options: tuple[str, ...]


EARLY = ("--noisy-every", "2", "--astray-every", "0")
RUNS = (
    Run(2, 13.5, 0, ("--batch", "384", "--lr", "1e-3", *EARLY)),
    Run(1, 14.0, 0, ("--batch", "256", "--lr", "8e-4", *EARLY)),
    Run(1, 6.5, 5, ("--batch", "256", "--lr", "5e-4", *EARLY)),
    Run(2, 5.4, 6, ("--batch", "384", "--in-sets", "192", "--lr", "8e-4", *EARLY)),
    Run(1, 6.0, 7, ("--batch", "384", "--in-sets", "256", "--lr", "6e-4", "--astray-every", "0")),
    Run(1, 8.0, 8, ("--batch", "384", "--in-sets", "256", "--lr", "6e-4")),
)
VIEWS = "80"  # of each model at a time
LEAST_MINUTES = 1.0  # of one GPU: what a stopped run has left of them is not worth its start
SEED_APART = 100  # between the seeds of a run and of what goes on with it


@dataclass(frozen=True)
class Trained:
    """What has been trained into a folder of weights: minutes on one GPU, in so many trainings."""

    gpu_minutes: float
    trainings: int

    def beyond(self, other: Trained) -> Trained:
        """What came after `other`."""
        return Trained(self.gpu_minutes - other.gpu_minutes, self.trainings - other.trainings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack and train; 0 when done, 1 when a run failed, 2 when it cannot start, each with one line."""
    parser = argparse.ArgumentParser(
        prog="python -m nerf_bridge.prior.retrain", description=(__doc__ or "").split(".")[0]
    )
    parser.add_argument("--package", type=Path, required=True, help="Debian package of the models, or its folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the library and the weights of every run")
    parser.add_argument("--gpus", type=int, help="GPUs to use at most, runs take longer with fewer; default: all")
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="of every run's minutes; with 0.1 all is done in about twenty minutes, to see that it works",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not options.package.exists():
        parser.error(f"--package: no such file or folder: {options.package}")
    try:
        retrain(options.package, options.out, usable_gpus(options.gpus), options.share)
    except UserError as error:
        parser.error(str(error))
    except RunError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    return 0


def usable_gpus(most: int | None) -> int:
    """How many GPUs there are, at most `most`. Raises UserError when that is none."""
    found = torch.cuda.device_count()
    if found == 0:
        raise UserError("training needs a CUDA GPU, and torch sees none; the shipped weights are in data/prior/weights")
    if most is not None and most < 1:
        raise UserError(f"--gpus: expected at least 1, got {most}")
    return min(found, most or found)


def retrain(package: Path, out: Path, gpus: int, share: float) -> Path:
    """Do what is not finished in `out`, and return the folder of the last weights.

    Raises:
        UserError: the share is not above 0.
        RunError: a run failed.
    """
    if share <= 0:
        raise UserError(f"--share: expected a number above 0, got {share:g}")
    out.mkdir(parents=True, exist_ok=True)
    library = out / "library.npz"
    if not library.exists():
        pack.main(["--package", str(package), "--out", str(library)])
    folders = [out / f"run-{number}" for number in range(1, len(RUNS))] + [out / "weights"]
    before: Path | None = None
    for number, (run, folder) in enumerate(zip(RUNS, folders, strict=True), start=1):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            done = trained_in(unfinished).beyond(trained_in(before))
            if done.trainings <= 0:
                shutil.rmtree(unfinished, ignore_errors=True)
                done = Trained(0.0, 0)
            call = command(run, library, unfinished, before, gpus, share, done)
            logger.info("run %d of %d: %s", number, len(RUNS), folder)
            if call and subprocess.run(call, check=False).returncode:
                raise RunError(f"run {number} failed: see the messages above; the same command goes on with it")
            unfinished.rename(folder)
        before = folder
    logger.info("weights: %s", folders[-1])
    return folders[-1]


def trained_in(folder: Path | None) -> Trained:
    """What the log of the weights in `folder` tells, of the trainings before them too; nothing where there are none."""
    try:
        last = json.loads(((folder or Path()) / "index.json").read_text(encoding="utf-8"))["training"]
        trainings = [*last.get("earlier", []), last]
        minutes = sum(training["gpus"] * training["log"][-1]["seconds"] / 60 for training in trainings)
    except (OSError, ValueError, KeyError, IndexError):
        return Trained(0.0, 0)
    return Trained(minutes, len(trainings))


def command(
    run: Run, library: Path, folder: Path, before: Path | None, gpus: int, share: float, done: Trained
) -> list[str]:
    """The training of what is not `done` of a run, as a command; empty where next to nothing is left.

    On fewer GPUs than it had it takes as much longer, with fewer images a step.
    """
    used = min(run.gpus, gpus)
    left = run.minutes * run.gpus * share - done.gpu_minutes
    if done.trainings and left < LEAST_MINUTES:
        return []
    launcher = [sys.executable, "-m"]
    if used > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(used), "-m"]
    start = ["--resume"] if done.trainings else [] if before is None else ["--start-from", str(before)]
    places = ["--library", str(library), "--out", str(folder), *start]
    seed = run.seed + SEED_APART * done.trainings
    numbers = ["--minutes", f"{left / used:g}", "--seed", str(seed), "--views", VIEWS]
    return [*launcher, "nerf_bridge.prior.train", *places, *numbers, *run.options]


if __name__ == "__main__":
    sys.exit(main())
