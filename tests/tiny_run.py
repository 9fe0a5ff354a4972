"""Runs that take about a second: small settings, a small oracle, and looks at what a run left."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from oracle import OraclePrior

from nerf_bridge import pipeline
from nerf_bridge.config import GenerateConfig, build_config
from nerf_bridge.run.events import read_events

PROMPT = "a green chair"
STEPS = 6
TINY: dict[str, object] = {
    "device": "cpu",
    "steps": STEPS,
    "checkpoint_every": 2,
    "preview_every": 3,
    "camera.views": 2,
    "render.size": 16,
    "render.samples_across": 32,
    "field.n_levels": 2,
    "field.n_features": 2,
    "field.log2_table_size": 10,
    "field.finest_resolution": 16,
    "field.hidden_width": 16,
    "occupancy.resolution": 16,
    "guidance.solver_steps": 1,
    "optim.inner_steps": 1,
    "mesh.resolution": 24,
    "mesh.faces": 200,
    "mesh.texture": 64,
}
FRAMES, FRAME_SIZE = 8, 64


class Killed(BaseException):
    """Stands for a process that ends here."""


class CountingOracle(OraclePrior):
    """The oracle in small; counts the steps that ask it, and can be given something to do at each.

    Attributes:
        steps: times that it was asked for noise.
    """

    def __init__(self) -> None:
        super().__init__(image_size=16, supersample=1)
        self.steps = 0

    def predict_noise(self, noised, t, embeddings, condition):
        self.steps += 1
        changed = self.at_step(self.steps, noised)
        return super().predict_noise(noised, t, embeddings, condition) if changed is None else changed

    def at_step(self, step, noised):
        """What to answer at the `step`-th question, from 1; None: the truth."""


def tiny_config(**changes: object) -> GenerateConfig:
    """TINY with `changes`, whose names have two underscores where settings have a dot."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return build_config({"prompt": PROMPT} | TINY | named)


def options(**changes: object) -> list[str]:
    """The same as words of the command line, without the prompt."""
    named = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    return [word for name, value in named.items() for word in (f"--{name}", str(value))]


def shorten_turntable(patch: pytest.MonkeyPatch) -> None:
    """A film of FRAMES small pictures."""
    patch.setattr(pipeline, "TURNTABLE_FRAMES", FRAMES)
    patch.setattr(pipeline, "TURNTABLE_SIZE", FRAME_SIZE)


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Contents and time of change of every file below `folder`, by relative path."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def outcome(folder: Path) -> dict[str, str]:
    """Hashes of what a run must give again, byte for byte: the last checkpoint, the asset and its pictures."""
    kept = ("checkpoint/", "previews/", "asset.glb", "preview.png", "config.yaml")
    found = {name: content for name, (content, _) in files(folder).items() if name.startswith(kept)}
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(found.items())}


def steps_of(folder: Path, name: str) -> list[int]:
    """Steps of the events called `name`."""
    return [event["step"] for event in read_events(folder / "events.jsonl") if event["event"] == name]


def leftovers(folder: Path) -> list[str]:
    """Files that were being written when something went wrong."""
    return [name for name in files(folder) if ".tmp" in name]
