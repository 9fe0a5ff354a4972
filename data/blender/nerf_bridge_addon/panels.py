"""What the add-on shows in the sidebar of the 3D view, tab nerf_bridge."""

from __future__ import annotations

import textwrap
from pathlib import Path

import bpy

from . import operators
from .properties import NerfBridgeRun, preferences, state

STATE_ICONS = {"done": "CHECKMARK", "running": "PLAY", "interrupted": "PAUSE", "stopped": "PAUSE", "failed": "ERROR"}
CHARACTER_PIXELS = 7
PICTURE_SCALE = 8.0


class NERF_BRIDGE_UL_runs(bpy.types.UIList):
    """The runs: picture, prompt, seed, state."""

    bl_idname = "NERF_BRIDGE_UL_runs"

    def draw_item(
        self, context, layout, data, item: NerfBridgeRun, icon, active_data, active_property, index=0, flt_flag=0
    ) -> None:
        """One line."""
        line = layout.row()
        picture = thumbnail(item)
        if picture:
            line.label(text=item.name, icon_value=picture, translate=False)
        else:
            line.label(text=item.name, icon="MESH_CUBE", translate=False)
        right = line.row()
        right.alignment = "RIGHT"
        right.label(text=item.seed)
        right.label(text="", icon=STATE_ICONS.get(item.state, "QUESTION"))


class NERF_BRIDGE_PT_generate(bpy.types.Panel):
    """The request, its progress, and what went wrong."""

    bl_idname = "NERF_BRIDGE_PT_generate"
    bl_label = "Generate"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "nerf_bridge"

    def draw(self, context: bpy.types.Context) -> None:
        """Draw it."""
        now, layout = state(), self.layout
        at_work = operators.session.generation is not None
        request = layout.column()
        request.enabled = not at_work
        request.prop(now, "prompt", text="", icon="TEXT")
        numbers = request.row(align=True)
        numbers.prop(now, "seed")
        numbers.prop(now, "steps")
        request.prop(now, "options")
        request.prop(preferences(), "folder")
        layout.prop(now, "place")
        if at_work:
            picture = operators.session.thumbnails.icon(Path(now.picture)) if now.picture else 0
            if picture:
                layout.template_icon(picture, scale=PICTURE_SCALE)
            line = layout.row(align=True)
            line.progress(factor=now.fraction, text=now.text)
            line.operator("nerf_bridge.stop", text="", icon="CANCEL")
        else:
            layout.operator("nerf_bridge.generate", icon="PLAY")
            say(layout, now.text, "INFO", context)
        say(layout, now.error, "ERROR", context)


class NERF_BRIDGE_PT_runs(bpy.types.Panel):
    """The runs of the folder, and the one that is chosen."""

    bl_idname = "NERF_BRIDGE_PT_runs"
    bl_label = "Runs"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "nerf_bridge"

    def draw(self, context: bpy.types.Context) -> None:
        """Draw it."""
        now, layout = state(), self.layout
        line = layout.row()
        line.template_list("NERF_BRIDGE_UL_runs", "", now, "runs", now, "index", rows=4)
        buttons = line.column(align=True)
        buttons.operator("nerf_bridge.refresh", text="", icon="FILE_REFRESH")
        buttons.operator("nerf_bridge.import_asset", text="", icon="FILE_FOLDER").filepath = ""
        if not now.runs:
            say(layout, f"Refresh lists the runs in {preferences().folder}", "INFO", context)
        if now.index < len(now.runs):
            self.draw_chosen(now.runs[now.index], context)

    def draw_chosen(self, run: NerfBridgeRun, context: bpy.types.Context) -> None:
        """Picture and facts of `run`, and the button that imports it."""
        layout = self.layout
        picture = thumbnail(run)
        if picture:
            layout.template_icon(picture, scale=PICTURE_SCALE)
        say(layout, run.name, "TEXT", context)
        facts = [f"seed {run.seed}" if run.seed else "", f"{run.faces} faces" if run.faces else "", run.state]
        layout.label(text=", ".join(fact for fact in facts if fact), icon=STATE_ICONS.get(run.state, "QUESTION"))
        say(layout, run.note, "INFO", context)
        say(layout, f"licence: {run.licence}" if run.licence else "", "COPY_ID", context)
        button = layout.row()
        asset = Path(run.path) / "asset.glb"
        button.enabled = run.state == "done"
        button.operator("nerf_bridge.import_asset", text="Import", icon="IMPORT").filepath = str(asset)


CLASSES = (NERF_BRIDGE_UL_runs, NERF_BRIDGE_PT_generate, NERF_BRIDGE_PT_runs)


def thumbnail(run: NerfBridgeRun) -> int:
    """The icon of a run's picture; 0: none."""
    return operators.session.thumbnails.icon(Path(run.path) / "preview.png")


def say(layout: bpy.types.UILayout, text: str, icon: str, context: bpy.types.Context) -> None:
    """Show `text`, broken into as many lines as the sidebar's width asks for; nothing when it is empty."""
    width = context.region.width if context.region else 280
    characters = max(16, int(width / (CHARACTER_PIXELS * context.preferences.system.ui_scale)) - 6)
    lines = layout.column(align=True)
    lines.scale_y = 0.8
    for i, line in enumerate(textwrap.wrap(text, characters)):
        lines.label(text=line, icon=icon if i == 0 else "BLANK1", translate=False)


def register() -> None:
    """Make them known to Blender."""
    for kind in CLASSES:
        bpy.utils.register_class(kind)


def unregister() -> None:
    """Take them back."""
    for kind in reversed(CLASSES):
        bpy.utils.unregister_class(kind)
