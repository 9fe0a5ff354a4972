# ruff: noqa: F722, F821 - Blender's properties are annotations whose words are no types
"""What the add-on keeps: its preferences, and in the window manager the request, the list and the progress."""

from pathlib import Path

import bpy
from bpy.props import (
    CollectionProperty,
    EnumProperty,
    FloatProperty,
    IntProperty,
    PointerProperty,
    StringProperty,
)


class NerfBridgePreferences(bpy.types.AddonPreferences):
    """What stays from session to session."""

    bl_idname = __package__

    command: StringProperty(
        name="Command",
        description="The nerf-bridge program: its full path, or words such as: /venv/bin/python -m nerf_bridge",
        default="nerf-bridge",
    )
    folder: StringProperty(
        name="Runs",
        description="Folder of the run directories: what is listed, and where new ones go",
        default=str(Path.home() / "nerf_bridge" / "runs"),
        subtype="DIR_PATH",
    )

    def draw(self, context: bpy.types.Context) -> None:
        """The add-on's box in Blender's preferences."""
        self.layout.prop(self, "command")
        self.layout.prop(self, "folder")


class NerfBridgeRun(bpy.types.PropertyGroup):
    """A run in the list; its `name` is the prompt, which the list's search box looks at."""

    path: StringProperty()
    seed: StringProperty()
    state: StringProperty()
    note: StringProperty()
    faces: StringProperty()
    licence: StringProperty()


class NerfBridgeState(bpy.types.PropertyGroup):
    """The request, the list, and where the generation stands."""

    prompt: StringProperty(name="Prompt", description="What to make, for example: a green armchair")
    seed: IntProperty(name="Seed", description="Another seed gives another object", min=0)
    steps: IntProperty(name="Steps", description="Optimisation steps; 0: the default", min=0, max=1_000_000)
    options: StringProperty(
        name="Options", description="Further options of `nerf-bridge generate`, for example: --faces 8000 --device cuda"
    )
    place: EnumProperty(
        name="Place",
        description="Where an imported asset stands",
        items=[
            ("CURSOR", "3D Cursor", "Its lowest point at the height of the 3D cursor"),
            ("ORIGIN", "World Origin", "On the ground, in the middle of the world"),
        ],
    )
    runs: CollectionProperty(type=NerfBridgeRun)
    index: IntProperty()
    picture: StringProperty()
    fraction: FloatProperty()
    text: StringProperty()
    error: StringProperty()


CLASSES = (NerfBridgePreferences, NerfBridgeRun, NerfBridgeState)


def preferences() -> NerfBridgePreferences:
    """The add-on's preferences."""
    return bpy.context.preferences.addons[__package__].preferences


def state() -> NerfBridgeState:
    """The add-on's state of this session."""
    return bpy.context.window_manager.nerf_bridge


def runs_folder() -> Path:
    """The folder of the run directories; `//` at its start stands for the folder of the .blend file."""
    return Path(bpy.path.abspath(preferences().folder)).expanduser()


def register() -> None:
    """Make them known to Blender."""
    for kind in CLASSES:
        bpy.utils.register_class(kind)
    bpy.types.WindowManager.nerf_bridge = PointerProperty(type=NerfBridgeState, options={"SKIP_SAVE"})


def unregister() -> None:
    """Take them back."""
    del bpy.types.WindowManager.nerf_bridge
    for kind in reversed(CLASSES):
        bpy.utils.unregister_class(kind)
