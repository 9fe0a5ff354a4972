"""From the box to metres and a file's axes."""

from __future__ import annotations

import numpy as np
import pytest
from cuboid import HIGH, LOW, cuboid_asset
from hypothesis import given
from hypothesis import strategies as st

from nerf_bridge.mesh.placement import Pivot, Up, place

MESH = cuboid_asset().mesh


def test_the_longest_side_is_a_metre_and_the_bottom_s_centre_the_origin() -> None:
    placed = place(MESH, "z", None, "bottom")
    assert placed.vertices.min(axis=0) == pytest.approx([-0.5, -1 / 6, 0])
    assert placed.vertices.max(axis=0) == pytest.approx([0.5, 1 / 6, 2 / 3])
    assert np.array_equal(placed.normals, MESH.normals)


def test_y_up_turns_the_top_to_y_and_the_front_to_z() -> None:
    placed = place(MESH, "y", 0.4, "bottom")
    low, high = placed.vertices.min(axis=0), placed.vertices.max(axis=0)
    assert high - low == pytest.approx([0.6, 0.4, 0.2]) and low[1] == pytest.approx(0)
    front = MESH.normals[:, 1] == -1
    assert np.allclose(placed.normals[front], [0, 0, 1]) and placed.vertices[front, 2] == pytest.approx(high[2])
    top = MESH.normals[:, 2] == 1
    assert np.allclose(placed.normals[top], [0, 1, 0]) and placed.vertices[top, 1] == pytest.approx(high[1])


@pytest.mark.parametrize(
    ("pivot", "middle"), [("bottom", (0, 0, 0.2)), ("center", (0, 0, 0)), ("origin", tuple((LOW + HIGH) / 4))]
)
def test_pivots(pivot: Pivot, middle: tuple[float, float, float]) -> None:
    """At a height of 0.4 m everything is half as large as in the box."""
    vertices = place(MESH, "z", 0.4, pivot).vertices
    assert (vertices.min(axis=0) + vertices.max(axis=0)) / 2 == pytest.approx(np.array(middle), abs=1e-12)


@given(
    up=st.sampled_from(["y", "z"]),
    height=st.none() | st.floats(1e-3, 1e3),
    pivot=st.sampled_from(["bottom", "center", "origin"]),
)
def test_no_placement_mirrors_or_bends(up: Up, height: float | None, pivot: Pivot) -> None:
    placed = place(MESH, up, height, pivot)
    before, after = (mesh.vertices[1:4] - mesh.vertices[0] for mesh in (MESH, placed))
    before, after = (
        np.vstack([sides[:2], normal]) for sides, normal in ((before, MESH.normals[0]), (after, placed.normals[0]))
    )
    scale = np.linalg.norm(after[0]) / np.linalg.norm(before[0])
    assert np.linalg.det(after) == pytest.approx(scale**2 * np.linalg.det(before))
    extent = np.ptp(placed.vertices, axis=0)
    assert extent.max() == pytest.approx(1) if height is None else extent["xyz".index(up)] == pytest.approx(height)
    assert np.array_equal(placed.faces, MESH.faces) and np.array_equal(placed.uv, MESH.uv)
