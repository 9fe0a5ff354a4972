"""An asset's metadata as lines of text, for the formats that have no place for it but comments."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from nerf_bridge.mesh.placement import FRONT, Up

MAKER = "made by nerf_bridge"


def note_lines(metadata: Mapping[str, object], up: Up, unit: str) -> list[str]:
    """Lines without line breaks, in ASCII: who made the file, its axes and unit, and `metadata` as `key: JSON`."""
    described = {"up": up, "front": FRONT[up], "unit": unit, **metadata}
    return [MAKER, *(f"{key}: {json.dumps(value)}" for key, value in described.items())]


def read_notes(lines: Iterable[str]) -> dict[str, object]:
    """What `note_lines` wrote; nothing when the lines are somebody else's."""
    stripped = [line.strip() for line in lines]
    if MAKER not in stripped:
        return {}
    notes: dict[str, object] = {}
    for line in stripped[stripped.index(MAKER) + 1 :]:
        key, colon, value = line.partition(": ")
        try:
            notes[key] = json.loads(value) if colon else None
        except ValueError:
            continue
    return {key: value for key, value in notes.items() if value is not None}
