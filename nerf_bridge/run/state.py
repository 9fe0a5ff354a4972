"""What a checkpoint of the optimisation holds: the scene, the optimiser's moments, and where the run stands."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from nerf_bridge.config import GenerateConfig
from nerf_bridge.errors import UserError, one_line
from nerf_bridge.ops.adam import SkippingAdam
from nerf_bridge.run.checkpoint import load_checkpoint, save_checkpoint
from nerf_bridge.run.directory import RunDirectory
from nerf_bridge.run.health import EmptyGuard, StepGuard
from nerf_bridge.scene.scene import Scene


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps done, what its guards remember, and its rung of the memory ladder."""

    step: int = 0
    guard: StepGuard = field(default_factory=StepGuard)
    empty: EmptyGuard = field(default_factory=EmptyGuard)
    rung: int = 0


def build_optimiser(scene: Scene, config: GenerateConfig) -> SkippingAdam:
    """Adam with one group for the hash grid, whose untouched entries it skips, and one for decoder and environment.

    eps is by default far above the usual 1e-15: where guidance and render agree, what is left of the gradient is far
    below it, and Adam would turn that into full steps.
    """
    grid = [scene.field.table]
    rest = [p for p in scene.field.parameters() if p is not scene.field.table] + list(scene.environment.parameters())
    settings = config.optim
    groups = [
        {"params": grid, "lr": settings.lr_grid, "skip": True},
        {"params": rest, "lr": settings.lr_decoder, "skip": False},
    ]
    return SkippingAdam(
        groups, betas=(0.9, 0.99), eps=settings.eps, weight_decay=settings.weight_decay, backend=scene.backend
    )


def scene_tensors(scene: Scene, optimiser: SkippingAdam) -> dict[str, Tensor]:
    """Everything that a checkpoint holds in tensors, by name."""
    modules = {"field": scene.field, "occupancy": scene.occupancy, "environment": scene.environment}
    tensors = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for i, entries in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{i}.{key}": value for key, value in entries.items()}
    return tensors


def load_scene(scene: Scene, tensors: dict[str, Tensor]) -> None:
    """Put the scene of a checkpoint's tensors back."""
    scene.field.load_state_dict(_part(tensors, "field."))
    scene.occupancy.load_state_dict(_part(tensors, "occupancy."))
    scene.environment.load_state_dict(_part(tensors, "environment."))


def load_tensors(scene: Scene, optimiser: SkippingAdam, tensors: dict[str, Tensor]) -> None:
    """Put scene and moments of a checkpoint's tensors back; the inverse of scene_tensors."""
    load_scene(scene, tensors)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _part(tensors, "optimiser.").items():
        index, key = name.split(".")
        moments.setdefault(int(index), {})[key] = value
    for which, state in moments.items():
        if any(state[key].shape != optimiser.parameters[which].shape for key in ("exp_avg", "exp_avg_sq")):
            raise RuntimeError(f"optimiser.{which}: moments of another shape than the parameter's")
    optimiser.load_state_dict({"state": moments})


def save(run: RunDirectory, scene: Scene, optimiser: SkippingAdam, config: GenerateConfig, progress: Progress) -> None:
    """Checkpoint the run."""
    save_checkpoint(run.checkpoint, scene_tensors(scene, optimiser), asdict(progress) | {"config": config.hash()})


def restore(run: RunDirectory, scene: Scene, optimiser: SkippingAdam) -> Progress | None:
    """Load the checkpoint of `run`, if there is one. Raises UserError when it is damaged."""
    loaded = load_checkpoint(run.checkpoint)
    if loaded is None:
        return None
    tensors, state = loaded
    try:
        load_tensors(scene, optimiser, tensors)
        return _progress(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _of_another_kind(run, error) from None


def restore_scene(run: RunDirectory, scene: Scene) -> Progress:
    """Load the scene alone from the checkpoint of `run`; at step 0 without one. Raises UserError if damaged."""
    loaded = load_checkpoint(run.checkpoint)
    if loaded is None:
        return Progress()
    try:
        load_scene(scene, loaded[0])
        return _progress(loaded[1])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _of_another_kind(run, error) from None


def _progress(state: dict[str, Any]) -> Progress:
    guards = StepGuard(**state["guard"]), EmptyGuard(**state["empty"])
    return Progress(state["step"], *guards, state.get("rung", 0))


def _of_another_kind(run: RunDirectory, error: Exception) -> UserError:
    """For a checkpoint that is whole, but holds other things than this scene has."""
    reason = one_line(error)
    return UserError(
        f"the checkpoint {run.checkpoint} is of other settings or of another version of the program ({reason}); "
        f"delete the directory {run.checkpoint} to start over"
    )


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
