"""Command-line options made from the settings' models, and the checked settings made from what came."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nerf_bridge.errors import UserError
from nerf_bridge.paths import config_path
from nerf_bridge.settings import allowed, closest, is_section, load_yaml, merged, nested, walk

SHORT_NAMES = {"mesh.faces": "--faces", "mesh.texture": "--texture", "mesh.height_m": "--height"}
_DEST = "setting "
Config = TypeVar("Config")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are UserErrors of one line, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError with argparse's message."""
        raise UserError(f"{message} (see {self.prog} --help)")


def wide_help(prog: str) -> argparse.HelpFormatter:
    """A formatter with room for dotted names."""
    return argparse.HelpFormatter(prog, max_help_position=34)


def add_settings(
    parser: argparse.ArgumentParser,
    model: type[BaseModel],
    sections: Collection[str] | None = None,
    plain: Collection[str] | None = None,
) -> None:
    """Give `parser` an option for the settings of `model` except the prompt, grouped by section.

    Args:
        sections: the sections to offer; None: all.
        plain: the settings outside of sections to offer; None: all.
    """
    group: Any = parser.add_argument_group("settings")
    for name, info in model.model_fields.items():
        if name != "prompt" and not is_section(info) and (plain is None or name in plain):
            _add_option(group, name, info)
    for name, info in model.model_fields.items():
        if is_section(info) and (sections is None or name in sections):
            group = parser.add_argument_group(name, (info.annotation.__doc__ or "").split("\n")[0])
            for path, setting in walk(info.annotation, f"{name}."):  # type: ignore[arg-type]
                _add_option(group, path, setting)


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the option that says how many runs are made at a time."""
    says = "runs made at a time, each in a process of its own, over all visible GPUs in turn (default: 1)"
    parser.add_argument("--workers", metavar="N", type=positive, default=1, help=says)


def positive(text: str) -> int:
    """A whole number of at least 1, as argparse wants it."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def given_settings(arguments: argparse.Namespace) -> dict[str, str]:
    """The settings given on the command line: dotted path to the text that came."""
    return {name.removeprefix(_DEST): value for name, value in vars(arguments).items() if name.startswith(_DEST)}


def leftover_lines(parser: argparse.ArgumentParser, leftovers: Sequence[str]) -> list[str]:
    """One error line for each of the arguments that `parser` did not know."""
    unknown = [word.partition("=")[0] for word in leftovers if word.startswith("-") and word.strip("-")]
    if not unknown and leftovers:
        words = " ".join(repr(word) for word in leftovers)
        return [f"unexpected words {words}: put a prompt or a name with spaces in quotes"]
    known = [name for name in parser._option_string_actions if name.startswith("--")]
    return [_unknown_option(word, known) for word in unknown]


def requested(arguments: argparse.Namespace, build: Callable[[dict], Config]) -> Config:
    """The settings of the command: defaults, under those of --config, under those of the command line.

    Raises:
        UserError: one line for each thing that is wrong with them, all at once.
    """
    settings, problems = layered_settings(arguments)
    if arguments.prompt is not None:
        settings["prompt"] = arguments.prompt
    return checked(build, settings, problems)


def layered_settings(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The settings of --config under those of the command line, not checked yet; and what went wrong so far."""
    problems: list[str] = list(arguments.problems)
    settings: dict[str, Any] = {}
    try:
        if arguments.config is not None:
            settings = nested(load_yaml(_config_file(arguments.config, arguments.command)))
    except UserError as error:
        problems.append(str(error))
    return merged(settings, nested(given_settings(arguments))), problems


def checked(build: Callable[[dict], Config], settings: dict[str, Any], problems: list[str]) -> Config:
    """The config, unless it or what was found before is wrong: then one UserError says it all."""
    try:
        config = build(settings)
    except UserError as error:
        raise UserError("\n".join([*problems, str(error)])) from None
    if problems:
        raise UserError("\n".join(problems))
    return config


def _config_file(name: str, command: str) -> Path:
    if Path(name).exists():
        return Path(name)
    if name in presets():
        if name.endswith("-2d") and command != "image":
            raise UserError(f"the preset {name} is for the command `image`; for {command}: {name[:-2]}3d")
        return config_path(f"{name}.yaml")
    raise UserError(f"no settings at {name!r}: expected a YAML file or a preset ({', '.join(presets())})")


def presets() -> list[str]:
    """The names of the settings files in ``configs/``."""
    return sorted(path.stem for path in config_path().glob("*.yaml"))


def suggestion(word: str, words: Collection[str]) -> str:
    """ "; did you mean X?" for the one of `words` that is nearest to `word`, or nothing."""
    near = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _unknown_option(word: str, known: Sequence[str]) -> str:
    near = closest(word.lstrip("-"), [name.removeprefix("--") for name in known])
    return f"unknown option {word}" + (f": did you mean --{near}?" if near else "; --help lists them all")


def _add_option(group: Any, path: str, info: FieldInfo) -> None:
    names = [SHORT_NAMES[path], f"--{path}"] if path in SHORT_NAMES else [f"--{path}"]
    default = "none" if info.default is None else info.default
    text = f"{info.description} (default: {default}; {allowed(info)})"
    group.add_argument(
        *names, dest=_DEST + path, default=argparse.SUPPRESS, metavar=_metavar(info), help=text.replace("%", "%%")
    )


def _metavar(info: FieldInfo) -> str:
    if get_origin(info.annotation) is Literal:
        return "NAME"
    options = get_args(info.annotation) or (info.annotation,)
    return "N" if options[0] is int else "X" if options[0] is float else "TEXT"
