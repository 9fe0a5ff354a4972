"""A session in real Blender with the add-on installed from its zip; writes what it saw as JSON.

Run by test_addon_in_blender.py: python session_in_blender.py ZIP RUNS ASSET OTHER COMMAND REPORT. Blender as a module
has no event loop, so the timers are called here.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import bpy
from strict_layout import StrictLayout

MODULE = "bl_ext.user_default.nerf_bridge"
WHERE = (1.0, 2.0, 0.5)


def install(archive: str) -> dict:
    """Install and switch on, as Blender's Install from Disk does."""
    done = bpy.ops.extensions.package_install_files(filepath=archive, repo="user_default", enable_on_install=True)
    kinds = [name for name in dir(bpy.types) if name.startswith("NERF_BRIDGE_")]
    return {"done": list(done), "on": MODULE in bpy.context.preferences.addons, "kinds": kinds}


def addon(name: str):
    """A module of the installed add-on."""
    return sys.modules[f"{MODULE}.{name}"]


def now():
    """The add-on's state."""
    return bpy.context.window_manager.nerf_bridge


def preferences():
    """The add-on's preferences."""
    return bpy.context.preferences.addons[MODULE].preferences


def listing(runs: str) -> dict:
    """What the list shows, and the thumbnails behind it."""
    preferences().folder = runs
    bpy.ops.nerf_bridge.refresh()
    timed = bpy.app.timers.is_registered(addon("operators").make_thumbnails)
    ticks = 1
    while addon("operators").make_thumbnails() is not None:
        ticks += 1
    fields = ("name", "seed", "state", "note", "faces", "licence")
    entries = [{field: getattr(entry, field) for field in fields} for entry in now().runs]
    done = next(entry for entry in now().runs if entry.state == "done")
    front = addon("thumbnails").front_view(Path(done.path) / "preview.png", 32)
    images = [image.name for image in bpy.data.images if image.filepath]
    return {"entries": entries, "timed": timed, "ticks": ticks, "front": list(front), "images_left": images}


def damaged_picture(folder: Path) -> object:
    """What becomes of a preview that is no picture."""
    path = folder / "broken.png"
    path.write_bytes(b"no picture")
    return addon("thumbnails").front_view(path, 32)


def refused(run) -> str:
    """The error that a button shows; empty when it shows none."""
    try:
        run()
    except RuntimeError as error:
        assert now().error in str(error), (now().error, str(error))
        return now().error
    return ""


def imported(asset: str, place: str) -> dict:
    """Facts of the object that importing makes."""
    now().place = place
    bpy.context.scene.cursor.location = WHERE
    before = set(bpy.data.objects)
    done = bpy.ops.nerf_bridge.import_asset(filepath=asset)
    (shape,) = [thing for thing in bpy.data.objects if thing not in before]
    corners = [shape.matrix_world @ vertex.co for vertex in shape.data.vertices]
    return {
        "done": list(done),
        "name": shape.name,
        "active": bpy.context.object == shape and bpy.context.selected_objects == [shape],
        "properties": dict(shape.items()),
        "location": list(shape.location),
        "low": [min(corner[axis] for corner in corners) for axis in range(3)],
        "high": [max(corner[axis] for corner in corners) for axis in range(3)],
        "materials": [material_facts(material) for material in shape.data.materials],
    }


def material_facts(material) -> dict:
    """The surface's images by the socket that they feed, with their colour spaces; roughness and metallic."""
    (surface,) = [node for node in material.node_tree.nodes if node.type == "BSDF_PRINCIPLED"]
    images = {}
    for socket in surface.inputs:
        for link in socket.links:
            node, through = link.from_node, []
            while node.type != "TEX_IMAGE":
                through.append(node.type)
                node = next(entry for entry in node.inputs if entry.links).links[0].from_node
            images[socket.name] = [node.image.name, node.image.colorspace_settings.name, list(node.image.size), through]
    values = {name: surface.inputs[name].default_value for name in ("Roughness", "Metallic")}
    return {"name": material.name, "images": images, **values}


def data_blocks() -> set[str]:
    """Everything that an import could leave behind."""
    kinds = ("objects", "meshes", "materials", "images", "node_groups", "collections")
    return {f"{kind} {block.name}" for kind in kinds for block in getattr(bpy.data, kind)}


def with_changes(source: Path, target: Path, changes: dict) -> None:
    """Copy a GLB whose JSON is changed: the entries of `changes` take the place of its own."""
    data = source.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    text = json.dumps(json.loads(data[20 : 20 + length]) | changes).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    start = struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A)
    target.write_bytes(start + text + rest)


def wrong_files(folder: Path, asset: Path) -> dict:
    """Importing what is no asset; the scene stays as it was."""
    (folder / "text.glb").write_text("no mesh", encoding="utf-8")
    bpy.ops.mesh.primitive_cube_add()
    bpy.ops.export_scene.gltf(filepath=str(folder / "cube.glb"), use_selection=True)
    unlit = {"name": "flat", "pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}
    unlit |= {"extensions": {"KHR_materials_unlit": {}}}
    with_changes(asset, folder / "unlit.glb", {"materials": [unlit], "extensionsUsed": ["KHR_materials_unlit"]})
    with_changes(asset, folder / "list.glb", {"asset": []})
    chosen, before = bpy.context.object, data_blocks()
    cube = (folder / "cube.glb").read_bytes()
    (folder / "cut.glb").write_bytes(cube[: len(cube) - 600])
    names = ("text.glb", "cube.glb", "cut.glb", "nothing.glb", "unlit.glb", "list.glb")
    tries = {name: lambda name=name: bpy.ops.nerf_bridge.import_asset(filepath=str(folder / name)) for name in names}
    errors = {name: refused(run) for name, run in tries.items()}
    left = sorted(data_blocks() - before)
    selected = bpy.context.object == chosen and bpy.context.selected_objects == [chosen]
    bpy.data.objects.remove(chosen)
    return {"errors": errors, "left": left, "selected": selected}


def follow_to_the_end() -> list[str]:
    """Call the timer until it wants no more; the texts that it showed."""
    texts = []
    end = time.monotonic() + 60
    while time.monotonic() < end:
        again = addon("operators").follow()
        texts.append(now().text)
        if again is None:
            return texts
        time.sleep(0.02)
    raise AssertionError(texts)


def generate(prompt: str, seed: int = 0, steps: int = 20, options: str = "") -> None:
    """Press Generate."""
    now().prompt, now().seed, now().steps, now().options = prompt, seed, steps, options
    bpy.ops.nerf_bridge.generate()


def generation(command: str, folder: Path) -> dict:
    """From prompt to object, while Blender loads another file in between."""
    preferences().command, preferences().folder = command, str(folder)
    generate("a stub chair", seed=5)
    timed = bpy.app.timers.is_registered(addon("operators").follow)
    second = bpy.ops.nerf_bridge.generate.poll()
    drawn = draw_panels()
    bpy.ops.wm.save_as_mainfile(filepath=str(folder.parent / "scene.blend"))
    bpy.ops.wm.open_mainfile(filepath=str(folder.parent / "scene.blend"))
    timed_after_loading = bpy.app.timers.is_registered(addon("operators").follow)
    texts = follow_to_the_end()
    return {
        "timed": [timed, timed_after_loading],
        "second": second,
        "texts": texts,
        "active": bpy.context.object.name,
        "error": now().error,
        "listed": [(entry.name, entry.seed, entry.state) for entry in now().runs],
        "drawn": drawn,
        "again": bpy.ops.nerf_bridge.generate.poll(),
    }


def in_edit_mode() -> dict:
    """A generation that ends while a mesh is being edited waits with its import."""
    before = len(bpy.data.objects)
    generate("an edited chair", steps=2)
    bpy.ops.object.mode_set(mode="EDIT")
    end = time.monotonic() + 60
    while not now().text.startswith("done;") and time.monotonic() < end:
        again = addon("operators").follow()
        time.sleep(0.02)
    waiting = {"text": now().text, "again": again, "new": len(bpy.data.objects) - before}
    bpy.ops.object.mode_set(mode="OBJECT")
    follow_to_the_end()
    return waiting | {"imported": len(bpy.data.objects) - before, "active": bpy.context.object.name}


def bad_ends(folder: Path) -> dict:
    """What is shown after a failure, a wrong command, an empty prompt, and when the user stops it."""
    generate("broken chair", steps=3)
    follow_to_the_end()
    failed, drawn = now().error, draw_panels()
    empty = refused(lambda: generate("  "))
    generate("slow chair", steps=50)
    while not now().text.startswith("optimise"):
        addon("operators").follow()
    bpy.ops.nerf_bridge.stop()
    addon("operators").follow()
    stopping = now().text
    follow_to_the_end()
    states = {entry.name: entry.state for entry in now().runs}
    command, preferences().command = preferences().command, "/no/such/nerf-bridge"
    missing = refused(lambda: generate("a chair"))
    preferences().command, preferences().folder = command, str(folder / "none")
    nowhere = refused(bpy.ops.nerf_bridge.refresh)
    preferences().folder = str(folder)
    bpy.ops.nerf_bridge.refresh()
    return {"failed": failed, "drawn": drawn, "empty": empty, "stopping": stopping, "stopped": now().text,
            "states": states, "missing": missing, "nowhere": nowhere, "after": now().error}  # fmt: skip


def draw_panels() -> list[list[str]]:
    """Draw everything against a layout that knows what Blender's knows."""
    panels, lines = addon("panels"), []
    scale = SimpleNamespace(system=SimpleNamespace(ui_scale=1.0))  # without a screen Blender's own is 0
    context = SimpleNamespace(region=SimpleNamespace(width=300), preferences=scale)
    for panel in (panels.NERF_BRIDGE_PT_generate, panels.NERF_BRIDGE_PT_runs):
        drawn = SimpleNamespace(layout=StrictLayout(lines))
        drawn.draw_chosen = lambda run, context, drawn=drawn: panels.NERF_BRIDGE_PT_runs.draw_chosen(
            drawn, run, context
        )
        panel.draw(drawn, context)
    for entry in now().runs:
        panels.NERF_BRIDGE_UL_runs.draw_item(None, context, StrictLayout(lines), now(), entry, 0, now(), "index")
    addon("properties").NerfBridgePreferences.draw(
        SimpleNamespace(layout=StrictLayout(lines), bl_rna=preferences().bl_rna), context
    )
    return [list(line) for line in lines]


def switch_off(folder: Path) -> dict:
    """Switch off while a generation is at work, then on and off again."""
    generate("slow sofa", steps=50)
    while not now().text.startswith("optimise"):
        addon("operators").follow()
    bpy.ops.preferences.addon_disable(module=MODULE)
    record, end = folder / "slow-sofa-s0" / "run.json", time.monotonic() + 60
    while "interrupted" not in record.read_text(encoding="utf-8") and time.monotonic() < end:
        time.sleep(0.05)
    left = [name for name in dir(bpy.types) if name.startswith("NERF_BRIDGE_")]
    left += [name for name in ("nerf_bridge",) if hasattr(bpy.types.WindowManager, name)]
    bpy.ops.preferences.addon_enable(module=MODULE)
    back = bpy.ops.nerf_bridge.generate.poll()
    bpy.ops.preferences.addon_disable(module=MODULE)
    return {"record": json.loads(record.read_text(encoding="utf-8"))["state"], "left": left, "back": back}


def main(archive: str, runs: str, asset: str, other: str, command: str, report: str) -> None:
    """The session."""
    folder = Path(report).parent / "new runs"
    folder.mkdir()
    seen = {"install": install(archive), "listing": listing(runs), "damaged": damaged_picture(folder.parent)}
    seen |= {"drawn": draw_panels(), "cursor": imported(asset, "CURSOR"), "other": imported(other, "CURSOR")}
    seen |= {"origin": imported(asset, "ORIGIN")}
    seen |= {
        "wrong": wrong_files(folder.parent, Path(asset)),
        "generation": generation(command, folder),
        "edit": in_edit_mode(),
    }
    seen |= {"bad": bad_ends(folder), "off": switch_off(folder)}
    Path(report).write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
