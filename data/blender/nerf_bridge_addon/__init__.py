"""Blender add-on of nerf_bridge: lists run directories, imports their assets, starts generations in the background.

`runs`, `events`, `generation` and `glb` need no Blender; `importing`, `thumbnails`, `properties`, `operators` and
`panels` do, and are imported when Blender switches the add-on on.
"""


def register() -> None:
    """Blender switches the add-on on."""
    from . import operators, panels, properties

    properties.register()
    operators.register()
    panels.register()


def unregister() -> None:
    """Blender switches the add-on off, or quits: a generation at work saves its state and stops."""
    from . import operators, panels, properties

    panels.unregister()
    operators.unregister()
    properties.unregister()
