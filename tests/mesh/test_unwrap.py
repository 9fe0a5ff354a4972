"""Texture atlases: xatlas, and what replaces it when it hangs, fails or lies."""

from __future__ import annotations

import logging
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from analytic_fields import all_occupied, l_field, sphere_field

from nerf_bridge.mesh.clean import clean
from nerf_bridge.mesh.data import Mesh, UnwrappedMesh
from nerf_bridge.mesh.simplify import to_face_count
from nerf_bridge.mesh.surface import marching_cubes, sample_density
from nerf_bridge.mesh.unwrap import unwrap
from nerf_bridge.ops.raster import rasterize_uv

HANGS = (sys.executable, "-c", "import time; time.sleep(120)")
FAILS = (sys.executable, "-c", "import sys; sys.exit('no charts today')")
DIES = (sys.executable, "-c", "import os; os.abort()")
KILLED = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")  # as by the system
SILENT = (sys.executable, "-c", "pass")
LIES = (
    sys.executable,
    "-c",
    "import sys, numpy as np; given = np.load(sys.argv[1]); faces = given['faces'];"
    "np.savez(sys.argv[2], source=np.zeros(faces.max() + 1, int), faces=faces, uv=np.zeros((faces.max() + 1, 2)))",
)


@pytest.fixture(scope="module")
def body() -> Mesh:
    mesh = clean(marching_cubes(sample_density(l_field(), all_occupied(), 32), 40.0), 1e-4, 0.1)
    return to_face_count(mesh, 1500, 0.1)


def check_atlas(mesh: Mesh, unwrapped: UnwrappedMesh, size: int) -> None:
    """The same surface, inside the texture, and no texel claimed by two faces."""
    assert np.allclose(unwrapped.vertices[unwrapped.faces], mesh.vertices[mesh.faces])
    assert unwrapped.uv.min() >= 0 and unwrapped.uv.max() <= 1
    assert np.allclose(np.linalg.norm(unwrapped.normals, axis=1), 1)
    uv, faces = torch.as_tensor(unwrapped.uv), torch.as_tensor(unwrapped.faces)
    lowest_wins = rasterize_uv(uv, faces, size, "torch").face_index
    highest_wins = rasterize_uv(uv, faces.flip(0), size, "torch").face_index
    same = torch.where(highest_wins >= 0, len(faces) - 1 - highest_wins, -1)
    assert torch.equal(lowest_wins, same)
    a, b, c = (unwrapped.uv[unwrapped.faces[:, corner]] for corner in range(3))
    area = np.cross(np.pad(b - a, ((0, 0), (0, 1))), np.pad(c - a, ((0, 0), (0, 1))))[:, 2]
    assert (area > 0).mean() > 0.99 or (area < 0).mean() > 0.99  # no chart is mirrored


def test_xatlas_unwraps(body: Mesh) -> None:
    unwrapped = unwrap(body, 256, 60.0, 4.0)
    assert unwrapped.method == "xatlas"
    check_atlas(body, unwrapped, 256)


def test_xatlas_is_fast_and_uses_the_texture(body: Mesh) -> None:
    """Charts of bounded size: without the bound 20,000 faces take three times as long."""
    unwrapped = unwrap(body, 1024, 60.0, 4.0)
    sides = unwrapped.uv[unwrapped.faces]
    (ax, ay), (bx, by) = (sides[:, 1] - sides[:, 0]).T, (sides[:, 2] - sides[:, 0]).T
    assert np.abs(0.5 * (ax * by - ay * bx)).sum() > 0.4
    assert len(unwrapped.vertices) < 2 * len(body.vertices)


def test_xatlas_gets_no_more_memory_than_allowed(body: Mesh, caplog: pytest.LogCaptureFixture) -> None:
    look = "import resource; from nerf_bridge.mesh.xatlas_worker import limit_memory; limit_memory(0.5);"
    look += "print(resource.getrlimit(resource.RLIMIT_DATA)[0])"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 2**29
    if sys.platform == "linux":  # elsewhere the system does not hold processes to it
        with caplog.at_level(logging.WARNING):
            assert unwrap(body, 128, 60.0, 0.01).method == "grid"
        assert "it may take 0.01 GiB" in caplog.text


@pytest.mark.parametrize("n_faces", [1, 2, 3, 1500])
def test_the_grid_atlas_has_no_overlaps_and_covers_every_face(body: Mesh, n_faces: int) -> None:
    mesh = Mesh(body.vertices, body.faces[:n_faces])
    unwrapped = unwrap(mesh, 256, 60.0, 4.0, FAILS)
    assert unwrapped.method == "grid"
    check_atlas(mesh, unwrapped, 256)
    seen = rasterize_uv(torch.as_tensor(unwrapped.uv), torch.as_tensor(unwrapped.faces), 256, "torch").face_index
    assert len(seen[seen >= 0].unique()) == n_faces
    neighbours = (
        torch.stack([seen[:-1, :], seen[1:, :]]).reshape(2, -1),
        torch.stack([seen[:, :-1], seen[:, 1:]]).reshape(2, -1),
    )
    touching = torch.cat(neighbours, dim=1)
    assert not ((touching[0] >= 0) & (touching[1] >= 0) & (touching[0] != touching[1])).any()  # gutters


def test_a_texture_too_small_for_the_grid_still_gets_a_valid_atlas(body: Mesh) -> None:
    check_atlas(body, unwrap(body, 32, 60.0, 4.0, FAILS), 512)


def test_a_hanging_xatlas_is_stopped(body: Mesh, caplog: pytest.LogCaptureFixture) -> None:
    start = time.monotonic()
    with caplog.at_level(logging.WARNING):
        unwrapped = unwrap(body, 128, 0.5, 4.0, HANGS)
    assert time.monotonic() - start < 20
    assert unwrapped.method == "grid" and "more than 0.5 s" in caplog.text


@pytest.mark.parametrize(
    ("worker", "words"),
    [
        (FAILS, "no charts today"),
        (DIES, "failed with status -6"),
        (KILLED, "failed with status -9"),
        (SILENT, "no message"),
        (LIES, "another surface"),
        (("/nowhere",), "started"),
    ],
    ids=["fails", "dies", "killed", "silent", "lies", "missing"],
)
def test_a_broken_xatlas_is_replaced(
    body: Mesh, worker: tuple[str, ...], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert unwrap(body, 128, 60.0, 4.0, worker).method == "grid"
    assert words in caplog.text


def test_normals_are_those_of_the_whole_surface() -> None:
    mesh = to_face_count(
        clean(marching_cubes(sample_density(sphere_field(), all_occupied(), 32), 40.0), 1e-4, 0.1), 1000, 0.1
    )
    unwrapped = unwrap(mesh, 128, 60.0, 4.0, FAILS)
    radial = unwrapped.vertices / np.linalg.norm(unwrapped.vertices, axis=1, keepdims=True)
    assert (radial * unwrapped.normals).sum(axis=1).min() > 0.9
