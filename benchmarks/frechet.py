"""What the Frechet distance of `evaluate methods` answers to: true shapes with one thing wrong, beside the true shapes.

    python -m benchmarks.frechet --library library.npz          a minute or two on two CPU cores

It takes the prompts and views that the table of methods takes, draws the models of design 1 in another shade than the
reference (the floor), and then does one thing at a time to those: blurs all, makes all paler, darker or more or less
saturated, or shows some of the objects in another word's colour or as another model. It prints the table and writes
benchmarks/results/frechet-<device>.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from nerf_bridge import pipeline
from nerf_bridge.batch.jobs import read_jobs
from nerf_bridge.errors import UserError
from nerf_bridge.evaluate.assets import CPU, requests_of
from nerf_bridge.evaluate.judge import Judge, load_judge
from nerf_bridge.evaluate.measures import frechet_distance
from nerf_bridge.evaluate.methods import VIEWS, evenly
from nerf_bridge.evaluate.results import Row, format_table, write_results
from nerf_bridge.evaluate.truth import LARGE, SMALL, Request, Views, around, of_design, true_views
from nerf_bridge.paths import data_path
from nerf_bridge.prior.data.colours import TINT_WORDS
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.data.pack import load_library

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = 20
REFERENCE, OTHER_SHADE = 0, 1  # lots of true_views
COUNTS = (1, 2, 4)  # of the objects that are wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; 0 when done, 2 with one line when it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frechet", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--library", type=Path, required=True, help="packed models (nerf_bridge.prior.data.pack)")
    parser.add_argument("--prompts", type=Path, default=data_path("prompts/evaluation.txt"), help="file of prompts")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    options = parser.parse_args(arguments)
    try:
        models = load_library(options.library)
        judge = load_judge(None, CPU)
        every = [job.prompt for job in read_jobs(options.prompts, options.results, {})]
        requests = requests_of(evenly(every, PROMPTS), models)
    except UserError as error:
        parser.error(str(error))
    rows = distances(requests, models, judge)
    sys.stdout.write(format_table(rows) + "\n")
    about = {"prompts": [request.prompt for request in requests], "evaluator": judge.sha256}
    path = write_results(options.results, "frechet", pipeline.device_name(CPU), pipeline.versions(), rows, about)
    sys.stdout.write(f"{path}\n")
    return 0


def distances(requests: Sequence[Request], models: Sequence[LibraryModel], judge: Judge) -> list[Row]:
    """One row for each thing that is wrong."""
    designed = [of_design(request, models, 1) for request in requests]
    reference = torch.cat([judge.features(seen(request, REFERENCE).small()) for request in tqdm(designed, "reference")])
    shaded = [seen(request, OTHER_SHADE) for request in tqdm(designed, "other shades")]
    right = [judge.features(views.small()) for views in shaded]

    def row(case: str, features: Sequence[Tensor]) -> Row:
        return Row(case, "frechet", frechet_distance(torch.cat(list(features)), reference), "of features")

    rows = [row("nothing but the shades", right)]
    for case, change in tqdm(changes().items(), "all objects"):
        rows.append(row(case, [judge.features(replace(views, images=change(views)).small()) for views in shaded]))
    swaps = {"in another word's colour": recoloured, "shown as another model": remodelled}
    for case, swap in swaps.items():
        wrong = [swap(request, models) for request in requests]
        there = [i for i, request in enumerate(wrong) if request is not None]
        for n in (n for n in COUNTS if n <= len(there)):
            features = list(right)
            for i in there[:: max(1, len(there) // n)][:n]:
                features[i] = judge.features(seen(wrong[i], OTHER_SHADE).small())
            rows.append(row(f"{n} of {len(requests)} {case}", features))
    return rows


def seen(request: Request, lot: int) -> Views:
    """The true views of the request's first model, in the shade of `lot`."""
    return true_views(request, around(VIEWS), lot)


def changes() -> dict[str, Callable[[Views], Tensor]]:
    """What is done to all objects: from views to images [n, 3, s, s]; pixels are those that the evaluator sees."""
    pixel = LARGE / SMALL
    return {
        "blurred by 0.5 pixels": lambda views: blurred(views.images, 0.5 * pixel),
        "blurred by 1 pixel": lambda views: blurred(views.images, pixel),
        "15 % of the way to white": lambda views: views.images.lerp(torch.ones(()), 0.15 * views.coverage[:, None]),
        "30 % of the way to white": lambda views: views.images.lerp(torch.ones(()), 0.3 * views.coverage[:, None]),
        "15 % darker": lambda views: views.images * (1 - 0.15 * views.coverage[:, None]),
        "saturation x 0.8": lambda views: saturated(views.images, 0.8),
        "saturation x 1.2": lambda views: saturated(views.images, 1.2),
    }


def blurred(images: Tensor, sigma: float) -> Tensor:
    """`images` [n, 3, s, s] blurred by a Gaussian of `sigma` pixels."""
    radius = int(3 * sigma) + 1
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    wide = functional.pad(images, (radius,) * 4, mode="replicate")
    return functional.conv2d(functional.conv2d(wide, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def saturated(images: Tensor, factor: float) -> Tensor:
    """`images` with their colours `factor` times as far from grey."""
    grey = images.mean(1, keepdim=True)
    return (grey + factor * (images - grey)).clamp(0, 1)


def recoloured(request: Request, models: Sequence[LibraryModel]) -> Request | None:
    """The same model in the colour four words on; None where the prompt has no word or the model takes no tint."""
    designed = of_design(request, models, 1)
    if request.colour is None or not designed.models[0].face_tintable.any():
        return None
    other = TINT_WORDS[(TINT_WORDS.index(request.colour) + 4) % len(TINT_WORDS)]
    return replace(designed, colour=other)


def remodelled(request: Request, models: Sequence[LibraryModel]) -> Request | None:
    """Another model of the same noun in the same colour; None where there is none."""
    own = of_design(request, models, 1).models[0]
    others = tuple(model for model in request.models if model is not own)
    return replace(request, models=others[:1]) if others else None


if __name__ == "__main__":
    sys.exit(main())
