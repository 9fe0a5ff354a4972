"""Settings from YAML files and the command line, their dotted paths, and one line for each wrong one.

Knows pydantic's models in general and none of ours in particular; the settings themselves are in ``config.py``.
"""

from __future__ import annotations

import difflib
import re
import reprlib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nerf_bridge.errors import UserError

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "none",
}
_BOOL = "tag:yaml.org,2002:bool"
_FLOAT = "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader):
    """Plain data as in YAML 1.2: on, off, yes and no are words, and 1e-3 is a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(_FLOAT, re.compile(r"^[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def load_yaml(path: Path) -> dict[str, Any]:
    """Settings from a YAML file. Raises UserError naming the file when it cannot be read or is no mapping."""
    try:
        with path.open(encoding="utf-8") as file:
            loaded = yaml.load(file, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        raise UserError(f"cannot read settings from {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"cannot read settings from {path}: {' '.join(str(error).split())}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        kind = type(loaded).__name__
        raise UserError(f"cannot read settings from {path}: expected a mapping of settings, got a {kind}")
    return loaded


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with what `over` says differently, section by section."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def nested(settings: Mapping[Any, Any]) -> dict[str, Any]:
    """`settings` with dotted names put into their sections: {"mesh.faces": 5} becomes {"mesh": {"faces": 5}}."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        first, *rest = str(key).split(".")
        for part in reversed(rest):
            value = {part: value}
        result = merged(result, {first: value})
    return result


def walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting of `model` and its sections as (dotted path, field), in their order."""
    for name, info in model.model_fields.items():
        if is_section(info):
            yield from walk(info.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{name}", info


def is_section(info: FieldInfo) -> bool:
    """Whether the field holds a group of settings and not one setting."""
    return isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)


def allowed(info: FieldInfo) -> str:
    """What a setting may be, in words: "a number above 0 up to 1", "one of auto, cpu, cuda"."""
    annotation = info.annotation
    if is_section(info):
        return "a group of settings"
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(str(choice) for choice in get_args(annotation))}"
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    words = [_WORDS.get(option, str(option)) for option in options]
    return " or ".join([words[0] + _bounds(info), *words[1:]])


def closest(name: str, names: Sequence[str]) -> str | None:
    """The one of the dotted `names` that `name` most likely means; None when none is near."""
    same_leaf = [known for known in names if known.rpartition(".")[2] == name.rpartition(".")[2]]
    if len(same_leaf) == 1:
        return same_leaf[0]
    near = difflib.get_close_matches(name.replace("-", "_"), names, n=1, cutoff=0.6)
    if near:
        return near[0]
    leaves = {known.rpartition(".")[2]: known for known in names}
    near = difflib.get_close_matches(name.replace("-", "_").rpartition(".")[2], list(leaves), n=1, cutoff=0.75)
    return leaves[near[0]] if near else None


def unknown_line(model: type[BaseModel], name: str) -> str:
    """The error line for a setting that `model` does not have, with the nearest one that it has."""
    sections = [section for section, info in model.model_fields.items() if is_section(info)]
    near = closest(name, [*sections, *(path for path, _ in walk(model))])
    return f"unknown setting {name}" + (f": did you mean {near}?" if near else "; --help lists them all")


def error_lines(model: type[BaseModel], errors: Sequence[Any]) -> list[str]:
    """One line for each of pydantic's `errors`: dotted path, what came, what is allowed."""
    lines = [line for item in errors for line in _lines(model, item)]
    return list(dict.fromkeys(lines))


def _lines(model: type[BaseModel], item: Mapping[str, Any]) -> list[str]:
    location = [str(part) for part in item["loc"]]
    path = ".".join(location)
    if item["type"] in ("extra_forbidden", "invalid_key"):
        return [unknown_line(model, path)]
    info = _find(model, location)
    message = item["msg"].removeprefix("Value error, ")
    if path == "prompt" or info is None:
        return [message if path in ("", "prompt") else f"{path}: {message}"]
    if item["type"] == "value_error" and is_section(info):
        return [f"{path}.{line}" for line in message.split("\n")]
    line = f"{path}: got {reprlib.repr(item['input'])}, allowed: {allowed(info)}"
    choices = [str(choice) for choice in get_args(info.annotation)] if item["type"] == "literal_error" else []
    near = difflib.get_close_matches(str(item["input"]).lower(), choices, n=1)
    return [line + (f"; did you mean {near[0]}?" if near else "")]


def _find(model: type[BaseModel], location: Sequence[str]) -> FieldInfo | None:
    info = model.model_fields.get(location[0]) if location else None
    if info is not None and len(location) > 1 and is_section(info):
        return _find(info.annotation, location[1:])  # type: ignore[arg-type]
    return info


def _bounds(info: FieldInfo) -> str:
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    found = {name: getattr(rule, name) for rule in info.metadata for name in words if hasattr(rule, name)}
    parts = [f"{word} {_plain(found[name])}" for name, word in words.items() if name in found]
    joiner = " and " if "lt" in found else " " if "ge" in found else " up "
    return f" {joiner.join(parts)}" if parts else ""


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else f"{number:g}"
