# ruff: noqa: F722, F821 - Blender's properties are annotations whose words are no types
"""What the buttons do, and the timers that follow a generation and make the thumbnails without blocking Blender."""

from pathlib import Path
from typing import ClassVar

import bpy
from bpy.props import StringProperty
from mathutils import Vector

from .errors import AddonError
from .generation import Generation, Request
from .importing import import_asset
from .properties import preferences, runs_folder, state
from .runs import list_runs
from .thumbnails import Thumbnails

FOLLOW_SECONDS, THUMBNAIL_SECONDS = 0.5, 0.02


class Session:
    """What lives while the add-on is on and fits into no Blender property.

    Attributes:
        generation: the one at work or being imported; None: none.
        thumbnails: the pictures of the list.
    """

    def __init__(self) -> None:
        self.generation: Generation | None = None
        self.thumbnails = Thumbnails()

    def close(self) -> None:
        """Stop the generation and free the pictures."""
        if self.generation is not None:
            self.generation.close()
        self.thumbnails.close()


session: Session | None = None  # made by register(): Blender's timers and buttons share nothing else


class NERF_BRIDGE_OT_refresh(bpy.types.Operator):
    """Look again at what lies in the folder"""

    bl_idname = "nerf_bridge.refresh"
    bl_label = "Refresh"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """List the runs."""
        try:
            refresh()
        except AddonError as error:
            return refuse(self, error)
        state().error = ""
        return {"FINISHED"}


class NERF_BRIDGE_OT_import_asset(bpy.types.Operator):
    """Import an asset, placed on the ground and named after its prompt"""

    bl_idname = "nerf_bridge.import_asset"
    bl_label = "Import Asset"
    bl_options: ClassVar[set[str]] = {"REGISTER", "UNDO"}

    filepath: StringProperty(name="File", description="The asset.glb of a run", subtype="FILE_PATH")
    filter_glob: StringProperty(default="*.glb", options={"HIDDEN"})

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Importing needs Object Mode."""
        return context.mode == "OBJECT"

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Ask for a file, unless the button names one."""
        if self.filepath:
            return self.execute(context)
        self.filepath = str(runs_folder()) + "/"
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Import the file."""
        try:
            import_asset(Path(bpy.path.abspath(self.filepath)), chosen_place(context))
        except AddonError as error:
            return refuse(self, error)
        state().error = ""
        return {"FINISHED"}


class NERF_BRIDGE_OT_generate(bpy.types.Operator):
    """Make an asset from the prompt in the background; it is imported when it is done"""

    bl_idname = "nerf_bridge.generate"
    bl_label = "Generate"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """One at a time."""
        return session is not None and session.generation is None

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Start the command and follow it."""
        now = state()
        request = Request(now.prompt, now.seed, now.steps, now.options)
        try:
            session.generation = Generation(preferences().command, request, runs_folder())
        except AddonError as error:
            return refuse(self, error)
        now.error, now.text, now.fraction, now.picture = "", "starting", 0.0, ""
        bpy.app.timers.register(follow, first_interval=FOLLOW_SECONDS, persistent=True)
        return {"FINISHED"}


class NERF_BRIDGE_OT_stop(bpy.types.Operator):
    """Stop the generation; it saves its state, and the same settings go on from there"""

    bl_idname = "nerf_bridge.stop"
    bl_label = "Stop"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Only while one is at work."""
        return session is not None and session.generation is not None

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Ask the process to stop; `follow` sees its end."""
        session.generation.stop()
        return {"FINISHED"}


CLASSES = (NERF_BRIDGE_OT_refresh, NERF_BRIDGE_OT_import_asset, NERF_BRIDGE_OT_generate, NERF_BRIDGE_OT_stop)


def follow() -> float | None:
    """Timer: show how far the generation is; at its end import what it made. Seconds till the next look, or None."""
    status, now = session.generation.poll(), state()
    now.text, now.fraction = status.text, status.fraction
    redraw()
    if status.state == "running":
        picture = session.generation.latest_picture()
        if picture is not None and str(picture) != now.picture:
            now.picture = str(picture)
            want_thumbnails([picture])
        return FOLLOW_SECONDS
    if status.state == "done" and bpy.context.mode != "OBJECT":
        now.text = "done; it is imported as soon as Blender is in Object Mode"
        return FOLLOW_SECONDS
    generation, session.generation = session.generation, None
    generation.close()
    now.error = status.text if status.state == "failed" else ""
    try:
        if status.state == "done":
            import_in_window(generation.run / "asset.glb")
        refresh()
    except AddonError as error:
        now.error = now.error or str(error)
    return None


def import_in_window(path: Path) -> None:
    """Import as the button does; a timer has no window of its own, and importers look for one."""
    with bpy.context.temp_override(window=bpy.context.window_manager.windows[0]):
        import_asset(path, chosen_place(bpy.context))
        bpy.ops.ed.undo_push(message="Import Asset")


def refresh() -> None:
    """List the runs of the folder anew and have their thumbnails made. Raises AddonError when it cannot be read."""
    now = state()
    now.runs.clear()
    found = list_runs(runs_folder())
    for run in found:
        entry = now.runs.add()
        entry.name, entry.path, entry.state, entry.note = run.prompt, str(run.path), run.state, run.note
        entry.seed = "" if run.seed is None else str(run.seed)
        entry.faces = "" if run.faces is None else f"{run.faces:,}"
        entry.licence = run.licence
    now.index = min(now.index, max(len(found) - 1, 0))
    want_thumbnails([run.preview for run in found])


def want_thumbnails(pictures: list[Path]) -> None:
    """Have small versions of `pictures` made, one after the other."""
    session.thumbnails.want(pictures)
    if not bpy.app.timers.is_registered(make_thumbnails):
        bpy.app.timers.register(make_thumbnails, first_interval=THUMBNAIL_SECONDS, persistent=True)


def make_thumbnails() -> float | None:
    """Timer: make one thumbnail. Seconds till the next one, or None."""
    more = session.thumbnails.make_next()
    redraw()
    return THUMBNAIL_SECONDS if more else None


def chosen_place(context: bpy.types.Context) -> Vector:
    """Where assets are put."""
    return context.scene.cursor.location.copy() if state().place == "CURSOR" else Vector((0.0, 0.0, 0.0))


def refuse(operator: bpy.types.Operator, error: AddonError) -> set[str]:
    """Show the error in the panel and in the status bar."""
    state().error = str(error)
    operator.report({"ERROR"}, str(error))
    return {"CANCELLED"}


def redraw() -> None:
    """Have the 3D views drawn again."""
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            if area.type == "VIEW_3D":
                area.tag_redraw()


def register() -> None:
    """Make the buttons known to Blender."""
    global session
    session = Session()
    for kind in CLASSES:
        bpy.utils.register_class(kind)


def unregister() -> None:
    """Take them back; a generation at work saves its state and stops."""
    global session
    for timer in (follow, make_thumbnails):
        if bpy.app.timers.is_registered(timer):
            bpy.app.timers.unregister(timer)
    for kind in reversed(CLASSES):
        bpy.utils.unregister_class(kind)
    session.close()
    session = None
