"""A real generation from Blender's side; writes what it saw as JSON. Run by test_addon_in_blender.py.

python real_run_in_blender.py ZIP RUNS OPTIONS COMMAND REPORT; without REPORT, Blender quits while the run is at work.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bpy
from session_in_blender import addon, follow_to_the_end, generate, install, material_facts, now, preferences


def main(archive: str, runs: str, options: str, command: str, report: str = "") -> None:
    """Generate; with `report`, to the end."""
    install(archive)
    preferences().command, preferences().folder = command, runs
    if not report:
        generate("slow chair", steps=50)
        while not now().text.startswith("optimise"):
            addon("operators").follow()
        return
    generate("a green chair", steps=6, options=options)
    texts = follow_to_the_end()
    shape = bpy.context.object
    facts = {"texts": texts, "error": now().error, "picture": Path(now().picture).name, "name": shape.name}
    facts |= {"faces": len(shape.data.polygons), "properties": dict(shape.items())}
    facts |= {"materials": [material_facts(material) for material in shape.data.materials]}
    Path(report).write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
