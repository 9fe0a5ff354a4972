"""The story of a run: prompt -> prior -> optimised field -> mesh -> pictures and report, in one run directory."""

from __future__ import annotations

import functools
import logging
import math
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nerf_bridge.config import GenerateConfig, build_config
from nerf_bridge.device import resolve_device
from nerf_bridge.errors import Interrupted, RunError, UserError, where_raised
from nerf_bridge.guidance import EncodedWords, encode_words
from nerf_bridge.guidance.debias import prompts_by_view
from nerf_bridge.memory.descent import OutOfMemory, place_or_descend
from nerf_bridge.memory.ladder import RUNGS, is_out_of_memory, within_preset
from nerf_bridge.memory.preflight import bound_views, plan_memory
from nerf_bridge.mesh.export import MeshStatistics, export_mesh
from nerf_bridge.mesh.gltf import load_textured_mesh
from nerf_bridge.mesh.refine_texture import Guide, refine_texture
from nerf_bridge.mesh.silhouettes import render_silhouettes
from nerf_bridge.mesh.write import check_format, check_target
from nerf_bridge.ops.backend import resolve_backend
from nerf_bridge.ops.memory import keep_freed_memory
from nerf_bridge.optimize import optimise
from nerf_bridge.prior import Prior, check_prior_name, find_prior, load_prior
from nerf_bridge.prior.designs import designs_of, split_design, with_design
from nerf_bridge.run.checkpoint import has_checkpoint
from nerf_bridge.run.directory import (
    RunDirectory,
    default_run_path,
    load_run,
    open_run,
    read_record,
    run_status,
    write_record,
)
from nerf_bridge.run.events import EventLog, read_events
from nerf_bridge.run.preview import image_grid, save_png, save_turntable
from nerf_bridge.run.report import write_report
from nerf_bridge.run.state import restore_scene
from nerf_bridge.scene.cameras import turntable_cameras
from nerf_bridge.scene.mesh_render import shade_mesh
from nerf_bridge.scene.scene import Scene, build_scene

logger = logging.getLogger(__name__)

TURNTABLE_FRAMES, TURNTABLE_SIZE = 48, 320
STAGES_TO_ASSET = ("start", "prior", "optimise", "mesh")
VERSIONED = ("nerf-bridge", "torch", "numpy", "transformers", "diffusers", "trimesh", "xatlas", "pydantic")


def generate(
    config: GenerateConfig, out: Path | None = None, prior: Prior | None = None, began: float | None = None
) -> RunDirectory:
    """Make a textured mesh from a prompt; the same call resumes a stopped run and leaves a finished one alone.

    Args:
        config: every setting.
        out: the run directory; None: runs/<slug>-s<seed>.
        prior: a prior to use in place of the one that `config.prior` names.
        began: when the work on it began, in seconds since 1970, from which the stage `start` counts; None: now.

    Returns:
        The run directory, with asset, pictures, report and record in it.

    Raises:
        UserError: the request cannot be met as it stands.
        RunError: the run failed on the way; its checkpoint stays.
        Interrupted: the user stopped it; its checkpoint is saved.
    """
    began = time.time() if began is None else began
    keep_freed_memory()
    device = resolve_device(config.device)
    if prior is None:
        check_prior_name(config.prior)
    check_format(Path("asset.glb"), config.mesh)
    path = out or default_run_path(config.prompt, config.seed)
    run_status(path, config)  # refuses a wrong place before kernels are built for it
    backend = resolve_backend(config.backend, device)
    with open_run(path, config) as state:
        if state.status == "finished":
            logger.info("%s is finished; nothing to do", state.run.path)
            return state.run
        try:
            with EventLog(state.run.events) as log, failures_told(state.run, config, log):
                story(state.run, config, log, device, backend, prior, began)
        except UserError:
            state.take_back()  # what is asked for instead may have other settings
            raise
        return state.run


def story(
    run: RunDirectory,
    config: GenerateConfig,
    log: EventLog,
    device: torch.device,
    backend: str,
    prior: Prior | None,
    began: float,
) -> None:
    """The stages of a run, one after the other, each timed over all processes that work on it.

    What came before them counts as the stage `start`.
    """
    earlier = read_record(run)
    seconds, memory = dict(earlier.get("seconds", {})), dict(earlier.get("memory", {}))
    record: dict[str, Any] = {"prompt": config.prompt, "seed": config.seed, "state": "running", "seconds": seconds}
    record["memory"] = memory
    record |= {"device": device_name(device), "backend": backend, "versions": versions()}
    seconds["start"] = round(seconds.get("start", 0.0) + time.time() - began, 3)
    write_record(run, record)
    log.append("start", "prior", 0, config.steps)
    with timed(run, record, "prior"):
        found = find_prior(config.prior, config.model) if prior is None else None
        plan = plan_memory(config, device, found, known=prior is None)
        config = bound_views(config, memory.get("view_size") if has_checkpoint(run.checkpoint) else None)
        record["memory"] = plan.record() | {"setting": config.memory, "view_size": config.render.size}
        prior = prior or load_prior(config.prior, device, config.model, found, plan.words_device)
        check_views(config, prior)
        words = words_of(config, prior)
    record |= {"prior": asdict(prior.info()), "design": design_of(config, prior)}
    with timed(run, record, "optimise"):
        scene = build_scene(config, backend, device)
        progress = optimise(run, config, scene, prior, words, log, plan.rung)
        record["memory"]["rung"] = RUNGS[progress.rung].name
    log.append("stage", "mesh", config.steps, config.steps)
    with timed(run, record, "mesh"):
        guide = Guide(prior, words, config, scene)
        statistics = make_mesh(scene, config, run.asset, asset_metadata(config, record["prior"]), guide)
    record["seconds_to_asset"] = round(sum(seconds[stage] for stage in STAGES_TO_ASSET), 3)
    log.append("stage", "report", config.steps, config.steps)
    with timed(run, record, "report"):
        make_pictures(run, backend, device)
        record["mesh"] = asdict(statistics)
        write_report(run, config, record, run.list_previews())
    write_record(run, record | {"state": "done"})
    log.append("done", "report", config.steps, config.steps)


def words_of(config: GenerateConfig, prior: Prior) -> EncodedWords:
    """The prompts of a run, encoded by its prior."""
    view_prompts = prompts_by_view(config.prompt, config.guidance, config.model.offline)
    return encode_words(prior, designed_prompt(config, prior), config.guidance, view_prompts=view_prompts)


def designed_prompt(config: GenerateConfig, prior: Prior) -> str:
    """The prompt of a run with the design that it draws, if its prior knows any."""
    return with_design(config.prompt, designs_of(prior), config.model.design, config.seed)


def design_of(config: GenerateConfig, prior: Prior) -> int:
    """The design that a run draws; 0 where its prior knows none, or is told none."""
    return split_design(designed_prompt(config, prior))[1] if designs_of(prior) else 0


def check_views(config: GenerateConfig, prior: Prior) -> None:
    """Raise UserError unless the views of a step make whole groups for the prior."""
    if config.camera.views % prior.view_group:
        raise UserError(
            f"camera.views: prior {prior.name} takes {prior.view_group} views at a time, got {config.camera.views}; "
            f"use a multiple of {prior.view_group}"
        )


def export(
    run_path: Path,
    changes: Mapping[str, object],
    out: Path | None = None,
    device: str = "cpu",
    backend: str = "auto",
) -> tuple[Path, MeshStatistics]:
    """Make the mesh of a run again with other mesh settings, without optimising again.

    Args:
        run_path: a run directory whose optimisation has come to its end.
        changes: settings of `mesh.` to change, by name.
        out: the file to write, its suffix names the format (`write_asset`); None: export.glb in the run directory.

    Returns:
        The file, and what was written.

    Raises:
        UserError: there is no such run, it is not optimised to its end, a setting is wrong, or `out` cannot be written
            or is the run's own asset.
        RunError: the mesh could not be written.
    """
    run, config = load_run(run_path)
    settings, record = config.model_dump(), read_record(run)
    settings["mesh"] |= dict(changes)
    settings["memory"] = record.get("memory", {}).get("setting", config.memory)  # that of the run's last part
    config = within_preset(build_config(settings))
    path = out or run.path / "export.glb"
    check_target(path, config.mesh)
    if path.resolve() == run.asset.resolve():
        raise UserError(
            f"cannot export to {path}: run.json and the report describe that asset; without --out it becomes export.glb"
        )
    where = resolve_device(device)
    scene = build_scene(config, resolve_backend(backend, where), where)
    progress = restore_scene(run, scene)
    if progress.step < config.steps:
        stands = f"stands at step {progress.step} of {config.steps}"
        raise UserError(f"{run_path} {stands}: run the same `generate` command first")
    guide = load_guide(config, scene, progress.rung) if config.mesh.refine_steps else None
    try:
        return path, make_mesh(scene, config, path, asset_metadata(config, record.get("prior", {})), guide)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None


def load_guide(config: GenerateConfig, scene: Scene, rung: int) -> Guide:
    """The prior, on the rung of the memory ladder where the run ended, and the prompts, to refine a run's texture."""
    prior = load_prior(config.prior, scene.device, config.model)
    check_views(config, prior)
    words = words_of(config, prior)  # before the networks come to the device: text encoders need the room
    place_or_descend(prior, rung, told_of_descent)
    return Guide(prior, words, config, scene)


def told_of_descent(rung: int, lack: OutOfMemory) -> None:
    """One line that the texture is refined on a lower rung than the run's."""
    logger.warning("out of memory (%s); the texture is refined with: %s", lack.reason, RUNGS[rung].does)


def make_mesh(scene: Scene, config: GenerateConfig, path: Path, metadata: dict, guide: Guide | None) -> MeshStatistics:
    """Take the mesh out of the field, its threshold matched to the field's silhouettes, with a progress bar.

    With `mesh.refine_steps`, `guide` refines the texture.
    """
    occupied = scene.occupancy.occupied
    silhouettes = render_silhouettes(scene.field, occupied, scene.step_size, scene.backend)
    with tqdm(total=1.0, desc="mesh", bar_format="{l_bar}{bar}| {postfix}") as bar:

        def on_progress(stage: str, done: float) -> None:
            bar.set_postfix_str(stage, refresh=False)
            bar.update(done - bar.n)

        return export_mesh(
            scene.field,
            occupied,
            silhouettes,
            config.mesh,
            path,
            metadata,
            scene.backend,
            scene.device,
            on_progress,
            None if guide is None or config.mesh.refine_steps == 0 else functools.partial(refine_texture, guide=guide),
        )


def make_pictures(run: RunDirectory, backend: str, device: torch.device) -> None:
    """preview.png (four sides) and turntable.mp4, both of the finished mesh."""
    mesh = load_textured_mesh(run.asset).to(device)
    cameras = turntable_cameras(TURNTABLE_FRAMES, math.radians(15), 3.0, math.radians(40))
    frames: list[np.ndarray] = []
    for i in tqdm(range(TURNTABLE_FRAMES), "turntable"):
        images, _ = shade_mesh(mesh, cameras[[i]], TURNTABLE_SIZE, backend=backend)
        frames.append(images[0].cpu().numpy())
    quarter = TURNTABLE_FRAMES // 4
    save_png(run.preview, image_grid(np.stack(frames[::quarter]), 4))
    save_turntable(run.turntable, frames)


def asset_metadata(config: GenerateConfig, prior: Mapping[str, object]) -> dict[str, object]:
    """What the asset says of its own making; `prior` is the record of a PriorInfo."""
    named = {"prior": prior.get("name", config.prior), "licence": prior.get("licence")}
    return {"prompt": config.prompt, "seed": config.seed, **named}


def device_name(device: torch.device) -> str:
    """The device as people know it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the result."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@contextmanager
def timed(run: RunDirectory, record: dict[str, Any], stage: str) -> Iterator[None]:
    """Add the time that the block takes to the `seconds` of `record` and keep them on disk, also when it fails."""
    seconds, start = record["seconds"], time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = round(seconds.get(stage, 0.0) + time.perf_counter() - start, 3)
        with suppress(OSError):  # must not hide why the block failed
            write_record(run, record)


@contextmanager
def failures_told(run: RunDirectory, config: GenerateConfig, log: EventLog) -> Iterator[None]:
    """Turn what goes wrong on the way into one clear RunError that names the checkpoint, and record it."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        with suppress(OSError):
            write_record(run, read_record(run) | {"state": "interrupted"})
        raise
    except UserError as error:
        failed(run, config, log, str(error))
        raise
    except RunError as error:
        raise failed(run, config, log, str(error)) from error
    except OSError as error:
        raise failed(run, config, log, f"cannot read or write a file: {error}") from error
    except Exception as error:
        if is_out_of_memory(error):
            reason = (
                "out of memory; close other programs, go on with a smaller --memory, "
                "or use a smaller prior, mesh.resolution or mesh.texture"
            )
        else:
            reason = f"unexpected {type(error).__name__}: {' '.join(str(error).split())} ({where_raised(error)})"
        raise failed(run, config, log, reason) from error


def failed(run: RunDirectory, config: GenerateConfig, log: EventLog, reason: str) -> RunError:
    """Record the failure as far as the disk allows, and give the error to raise."""
    try:
        last = (read_events(run.events) or [{"stage": "prior", "step": 0}])[-1]
        log.append("failed", last["stage"], last["step"], config.steps, {"reason": reason})
        write_record(run, read_record(run) | {"state": "failed", "reason": reason})
    except OSError:
        logger.warning("the failure could not be recorded in %s", run.path)
    return RunError(f"the run failed: {reason}; its checkpoint, if any, is in {run.checkpoint}")
