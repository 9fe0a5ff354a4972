"""A stand-in for Blender's UILayout that records what is drawn and refuses what the real one would refuse."""

from __future__ import annotations

import bpy

FUNCTIONS = bpy.types.UILayout.bl_rna.functions
ICONS = {item.identifier for item in FUNCTIONS["label"].parameters["icon"].enum_items}
CONTAINERS = ("row", "column", "box")


class StrictLayout:
    """Records every line as (function, what it shows), containers in the order of their lines."""

    def __init__(self, lines: list[tuple[str, str]]) -> None:
        self.__dict__["lines"] = lines
        self.__dict__["button"] = None

    def __setattr__(self, name: str, value: object) -> None:
        if self.button is not None:
            setattr(self.button, name, value)  # a property of the operator behind a button
            self.lines.append((name, str(value)))
        else:
            assert name in bpy.types.UILayout.bl_rna.properties, name
            self.lines.append((name, str(value)))

    def __getattr__(self, name: str):
        parameters = [p for p in FUNCTIONS[name].parameters if not p.is_output]

        def draw(*values: object, **named: object):
            given = dict(zip([p.identifier for p in parameters], values, strict=False)) | named
            assert set(given) <= {p.identifier for p in parameters}, (name, given)
            assert {p.identifier for p in parameters if p.is_required} <= set(given), (name, given)
            assert given.get("icon", "NONE") in ICONS, given
            return self._draw(name, given)

        return draw

    def _draw(self, name: str, given: dict[str, object]) -> StrictLayout | None:
        if name in CONTAINERS:
            return StrictLayout(self.lines)
        if name in ("prop", "template_list"):
            data = given.get("data", given.get("dataptr"))
            assert given.get("property", given.get("propname")) in data.bl_rna.properties, given
        self.lines.append((name, str(given.get("text", given.get("property", given.get("operator", ""))))))
        if name == "template_list":
            assert hasattr(bpy.types, str(given["listtype_name"]))
        if name != "operator":
            return None
        group, _, action = str(given["operator"]).partition(".")
        layout = StrictLayout(self.lines)
        layout.__dict__["button"] = _Button(getattr(getattr(bpy.ops, group), action).get_rna_type())
        return layout


class _Button:
    def __init__(self, rna: bpy.types.Struct) -> None:
        self.__dict__["rna"] = rna

    def __setattr__(self, name: str, value: object) -> None:
        assert name in self.rna.properties, name
