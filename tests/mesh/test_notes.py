"""Metadata as lines of comments."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nerf_bridge.mesh.notes import note_lines, read_notes


@given(prompt=st.text(), seed=st.integers(), licence=st.none() | st.text())
def test_what_is_written_is_read(prompt: str, seed: int, licence: str | None) -> None:
    lines = note_lines({"prompt": prompt, "seed": seed, "licence": licence}, "z", "m")
    assert all(line.isascii() and line.isprintable() for line in lines)
    expected = {"up": "z", "front": "-y", "unit": "m", "prompt": prompt, "seed": seed}
    assert read_notes(["else", *lines]) == expected | ({} if licence is None else {"licence": licence})


def test_other_people_s_comments_are_left_alone() -> None:
    assert read_notes(["up: y", "made by Blender", "unit: m"]) == {}
    assert read_notes(["made by nerf_bridge", "v 1 2 3", "up: y", 'up: "y"', "odd: {"]) == {"up": "y"}
