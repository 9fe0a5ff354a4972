"""The options of `evaluate`, and what they ask for; imports nothing heavy, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nerf_bridge.config import build_config
from nerf_bridge.errors import UserError
from nerf_bridge.options import add_workers, layered_settings, positive, suggestion
from nerf_bridge.paths import data_path
from nerf_bridge.settings import merged, nested

KINDS = ("prior", "assets", "methods")
METHODS = ("sds", "csd", "nfsd", "bridge")


@dataclass(frozen=True)
class EvaluateRequest:
    """What `evaluate` is to do: `place` is the folder or file that it works on, `settings` those of its runs."""

    place: Path
    settings: Mapping[str, Any]
    methods: tuple[str, ...]


def add_evaluate_options(parser: argparse.ArgumentParser) -> None:
    """Give `parser` what and where to evaluate, and the options that are no settings of a run."""
    parser.add_argument("what", metavar="prior|assets|methods", help="what to measure")
    says = "assets: a folder of runs, one run, or a file of prompts to make first; methods: a file of prompts"
    parser.add_argument(
        "place", metavar="PLACE", nargs="?", type=Path, help=f"{says} (default: data/prompts/evaluation.txt)"
    )
    parser.add_argument("--library", metavar="FILE", type=Path, help="the packed true shapes (docs/prior.md tells how)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of the results (default: runs/evaluate-<what>)")
    parser.add_argument(
        "--evaluator", metavar="DIR", type=Path, help="weights of the evaluator (default: the package's)"
    )
    parser.add_argument("--weights", metavar="DIR", type=Path, help="prior: its weights (default: the package's)")
    for name, default, text in (
        ("seeds", 3, "prior, methods: seeds of each prompt"),
        ("nouns", 60, "prior: nouns drawn by lot, besides the held-out pairs"),
        ("images", 192, "prior: pictures of the azimuth table"),
        ("sampling-steps", 30, "prior: DDIM steps"),
        ("prompts", 20, "methods: how many of the file's prompts, evenly spaced"),
    ):
        parser.add_argument(
            f"--{name}", metavar="N", type=positive, default=default, help=f"{text} (default: {default})"
        )
    add_workers(parser)
    text = f"methods: which, joined by commas (default: {','.join(METHODS)})"
    parser.add_argument("--methods", metavar="NAMES", default=",".join(METHODS), help=text)


def evaluate_request(arguments: argparse.Namespace) -> EvaluateRequest:
    """What the parsed `arguments` ask for.

    Raises:
        UserError: one line for each thing that is wrong with them.
    """
    settings, problems = layered_settings(arguments)
    if arguments.what not in KINDS:
        problems.append(
            f"evaluate {arguments.what!r}: expected one of {', '.join(KINDS)}{suggestion(arguments.what, KINDS)}"
        )
    methods = tuple(dict.fromkeys(name.strip() for name in arguments.methods.split(",") if name.strip()))
    wrong = [name for name in methods if name not in METHODS] or ([arguments.methods] if not methods else [])
    problems += [f"--methods: {name!r} is none of {', '.join(METHODS)}" for name in wrong]
    if arguments.what == "prior":
        foreign = sorted(set(settings) - {"device"})
        problems += [f"evaluate prior makes no runs and takes no setting {name!r}" for name in foreign]
        if arguments.workers != 1:
            problems.append("--workers: evaluate prior makes no runs, which could be made side by side")
        if arguments.place is not None:
            problems.append(f"evaluate prior works on no place: {str(arguments.place)!r} is not needed")
    if arguments.what == "methods" and "method" in settings.get("guidance", {}):
        problems.append("guidance.method: evaluate methods goes through --methods; leave this setting out")
    place = arguments.place or data_path("prompts/evaluation.txt")
    if not place.exists():
        problems.append(f"{place}: no such file or folder")
    if arguments.what == "methods" and place.is_dir():
        problems.append(f"evaluate methods works on a file of prompts, not on the folder {place}")
    try:
        build_config(merged(nested({"prompt": "any"}), settings))
    except UserError as error:
        problems += str(error).split("\n")
    if problems:
        raise UserError("\n".join(problems))
    return EvaluateRequest(place, settings, methods)
