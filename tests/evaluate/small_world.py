"""A library of a few solids under the nouns of furniture, and an evaluator that has learned nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from io import BytesIO

import numpy as np
import torch
import trimesh
from PIL import Image

from nerf_bridge.evaluate.batches import nouns_of
from nerf_bridge.evaluate.judge import Judge, make_judge
from nerf_bridge.evaluate.model import Evaluator, EvaluatorConfig
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.data.primitives import build_primitives
from nerf_bridge.prior.text import TextEncoder, text_encoder_folder
from nerf_bridge.run.directory import RunDirectory, write_record

TINY = EvaluatorConfig(channels=(8, 8), blocks=(1, 1), embedding=16, text_hidden=16, text_length=8)
NAMES = {"arrow": "armchair", "cube": "chair", "cone": "sofa", "star": "horse", "cross": "desk", "ball": "vase"}
GREEN, RED = (0.15, 0.6, 0.2), (0.8, 0.1, 0.1)


@cache
def library() -> tuple[LibraryModel, ...]:
    """Two models of each noun of NAMES, the second of "chair" held out."""
    found: dict[str, list[LibraryModel]] = {}
    for model in build_primitives(0, n_single=60, n_pairs=0):
        if model.noun in NAMES and len(found.setdefault(model.noun, [])) < 2:
            found[model.noun].append(model)
    models = [m for part in found.values() for m in part]
    renamed = [
        replace(m, noun=NAMES[m.noun], article="an" if m.noun == "arrow" else "a", category="Toys") for m in models
    ]
    return tuple(replace(m, holdout=m.name == "Primitives#cube-1") for m in renamed)


@cache
def encoder() -> TextEncoder:
    return TextEncoder(text_encoder_folder(), TINY.text_length)


def random_judge() -> Judge:
    """An evaluator with random weights."""
    torch.manual_seed(0)
    network = Evaluator(TINY).eval().requires_grad_(False)
    return make_judge(network, nouns_of(library()), "none", encoder(), torch.device("cpu"))


class Knower:
    """Stands for a judge that says `word` for every picture whose middle is `colour`, else "nothing"."""

    def __init__(self, word: str, colour: tuple[float, float, float]):
        self.word, self.colour, self.sha256 = word, torch.tensor(colour), "none"

    def hits(self, images, noun):
        middle = images[:, :, 28:36, 28:36].mean((2, 3))
        near = (middle / middle.norm(dim=1, keepdim=True) - self.colour / self.colour.norm()).norm(dim=1) < 0.3
        return [float(noun == self.word and bool(one)) for one in near]

    def features(self, images):
        return torch.nn.functional.avg_pool2d(images, 32).flatten(1).double()


def box_glb(colour, size=(1.0, 0.4, 0.5)) -> bytes:
    """A box of one colour as a textured mesh."""
    box = trimesh.creation.box(size)
    box.unmerge_vertices()
    pixels = np.full((8, 8, 3), 255 * np.array(colour), dtype=np.uint8)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(pixels), metallicFactor=0.0)
    box.visual = trimesh.visual.TextureVisuals(uv=np.full((len(box.vertices), 2), 0.5), material=material)
    stream = BytesIO(box.export(file_type="glb"))
    return stream.getvalue()


def finish(
    run: RunDirectory, prompt: str, asset: bytes, iou: float = 0.97, seconds: float = 60.0, design: int = 0
) -> RunDirectory:
    """Make `run` look like a finished one of `prompt`."""
    run.path.mkdir(parents=True, exist_ok=True)
    run.asset.write_bytes(asset)
    for path in (run.preview, run.turntable, run.report):
        path.write_bytes(b"x")
    record = {"prompt": prompt, "state": "done", "device": "a CPU", "versions": {}, "mesh": {"iou": iou}}
    write_record(run, record | {"seconds": {"optimise": seconds}, "design": design})
    return run
