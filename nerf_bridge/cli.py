"""The commands: what the user typed becomes checked settings, and every way to end becomes a line and a status.

Nothing here imports torch before a command runs, so that ``--help`` and wrong arguments answer at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from nerf_bridge import __version__
from nerf_bridge.config import GenerateConfig, build_config
from nerf_bridge.device import wake_gpu
from nerf_bridge.errors import Interrupted, RunError, UserError
from nerf_bridge.evaluate.options import add_evaluate_options, evaluate_request
from nerf_bridge.image_config import ImageConfig, build_image_config
from nerf_bridge.options import (
    Parser,
    add_settings,
    add_workers,
    checked,
    given_settings,
    layered_settings,
    leftover_lines,
    presets,
    requested,
    suggestion,
    wide_help,
)
from nerf_bridge.run.clock import process_began

if TYPE_CHECKING:
    from nerf_bridge.mesh.data import MeshStatistics

PROGRAM = "nerf-bridge"
VERBOSE_HELP = "say more while working, and show tracebacks (also: NERF_BRIDGE_DEBUG=1)"
Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed on the way, 2 refused, 130 interrupted.

    Args:
        argv: the arguments without the program's name; None: those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    verbose = "--verbose" in words or os.environ.get("NERF_BRIDGE_DEBUG", "") not in ("", "0")
    _log_to_stderr(verbose)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while they wait crawl where others work
    try:
        arguments = _parse(words)
        run: Command = arguments.run
        return run(arguments)
    except (Exception, KeyboardInterrupt) as error:
        if verbose:
            traceback.print_exc()
        return _explain(error)


def generate(arguments: argparse.Namespace) -> int:
    """`generate PROMPT`: prompt to run directory."""
    config = requested(arguments, build_config)
    wake_gpu(config.device)
    from nerf_bridge import pipeline

    run = pipeline.generate(config, arguments.out, began=process_began())
    _say(f"asset   {run.asset}")
    _say(f"report  {run.report}")
    return 0


def image(arguments: argparse.Namespace) -> int:
    """`image PROMPT`: prompt to 2D image."""
    config = requested(arguments, build_image_config)
    from nerf_bridge.image import make_image

    _say(f"image   {make_image(config, arguments.out)}")
    return 0


def export(arguments: argparse.Namespace) -> int:
    """`export RUN`: the mesh of a finished run again, with other settings."""
    given = given_settings(arguments)
    checked(build_config, {"prompt": "any", **given}, arguments.problems)
    changes = {path.removeprefix("mesh."): value for path, value in given.items() if path.startswith("mesh.")}
    from nerf_bridge import pipeline

    device, backend = given.get("device", "auto"), given.get("backend", "auto")
    path, written = pipeline.export(arguments.path, changes, arguments.out, device, backend)
    _say(f"asset   {path}")
    _say(f"mesh    {_mesh_summary(written)}")
    return 0


def _mesh_summary(written: MeshStatistics) -> str:
    low, high = written.bounds_m
    size = " x ".join(f"{above - below:.3g}" for below, above in zip(low, high, strict=True))
    bodies = "1 body" if written.components == 1 else f"{written.components} bodies"
    closed = "watertight" if written.watertight else "not watertight"
    return f"{written.faces} faces, {size} m, {bodies}, {closed}, silhouette IoU {written.iou:.3f}"


def inspect(arguments: argparse.Namespace) -> int:
    """`inspect FILE`: what is in a mesh file; status 1 when it is not sound."""
    if arguments.problems:
        raise UserError("\n".join(arguments.problems))
    from nerf_bridge.mesh.inspect import format_inspection, inspect_file, inspection_record

    found = inspect_file(arguments.path)
    _say(json.dumps(inspection_record(found), indent=2) if arguments.json else format_inspection(found))
    return 0 if found.sound else 1


def batch(arguments: argparse.Namespace) -> int:
    """`batch FILE`: many runs, one or several at a time; `batch status PLACE`: where they stand."""
    first, *rest = arguments.words
    if len(rest) > (first == "status"):
        arguments.problems.append("give one file of prompts, or `status` and the file or folder of a batch")
    if first == "status":
        return _batch_status(rest, arguments.out, arguments.problems)
    base, problems = layered_settings(arguments)
    checked(build_config, {"prompt": "any"} | base, problems)
    from nerf_bridge.batch.gallery import write_gallery
    from nerf_bridge.batch.jobs import read_jobs
    from nerf_bridge.batch.pool import open_engine
    from nerf_bridge.batch.queue import raise_for_failures, run_batch

    out = arguments.out or _batch_place(first)
    jobs = read_jobs(Path(first), out, base)
    with open_engine(arguments.workers, out, str(base.get("device", "auto"))) as engine:
        states = run_batch(jobs, out, engine)
    _say(f"gallery {write_gallery(out, states)}")
    raise_for_failures(states)
    return 0


def _batch_status(places: Sequence[str], out: Path | None, problems: list[str]) -> int:
    if not places and out is None:
        problems.append("say which batch: the file of prompts, or the folder that --out named")
    if problems:
        raise UserError("\n".join(problems))
    from nerf_bridge.batch.queue import read_batch, summary_table

    _say(summary_table(read_batch(out or _batch_place(places[0]))))
    return 0


def _batch_place(name: str) -> Path:
    """The folder of the batch of the file `name` when no --out is given; `name` may be that folder itself."""
    return Path(name) if Path(name).is_dir() else Path("runs") / Path(name).stem


def evaluate(arguments: argparse.Namespace) -> int:
    """`evaluate prior|assets|methods`: tables and picture sheets beside the true shapes."""
    request = evaluate_request(arguments)
    from nerf_bridge.evaluate import commands
    from nerf_bridge.evaluate.prior import SamplePlan
    from nerf_bridge.evaluate.results import format_table

    out = arguments.out or Path("runs") / f"evaluate-{arguments.what}"
    tools = commands.load_tools(
        arguments.library, arguments.evaluator, str(request.settings.get("device", "auto")), out
    )
    if arguments.what == "prior":
        plan = SamplePlan(arguments.seeds, arguments.sampling_steps)
        report = commands.evaluate_prior(tools, arguments.weights, arguments.nouns, arguments.images, plan)
    elif arguments.what == "assets":
        report = commands.evaluate_assets(tools, request.place, request.settings, arguments.workers)
    else:
        report = commands.evaluate_methods(
            tools,
            request.place,
            request.settings,
            request.methods,
            arguments.seeds,
            arguments.prompts,
            arguments.workers,
        )
    _say(format_table(report.rows))
    _say(f"results {report.results}")
    _say(f"sheet   {report.sheet}")
    return 0


def priors(arguments: argparse.Namespace) -> int:
    """`priors list|pull|verify [ALIAS ...]`: the models, their licences, and whether what is here is sound."""
    from nerf_bridge.prior.catalogue.commands import list_models, pull_models, verify_models

    action, *names = arguments.words
    actions = {"list": list_models, "pull": pull_models, "verify": verify_models}
    if action not in actions:
        known = ", ".join(actions)
        arguments.problems.append(f"priors: unknown action {action!r} (known: {known}){suggestion(action, actions)}")
    if arguments.problems:
        raise UserError("\n".join(arguments.problems))
    if action == "pull":
        _say(pull_models(names, arguments.to, arguments.non_commercial))
    else:
        _say(list_models() if action == "list" else verify_models(names))
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """`doctor`: what this machine can do."""
    if arguments.problems:
        raise UserError("\n".join(arguments.problems))
    from nerf_bridge.doctor import can_run, examine, format_table

    checks = examine()
    _say(format_table(checks))
    return 0 if can_run(checks) else 1


def _parse(words: list[str]) -> argparse.Namespace:
    parser, commands = _parsers()
    first = next((word for word in words if not word.startswith("-")), None)
    if first is None and not {"-h", "--help", "--version"} & set(words):
        raise UserError(f'say what to do, for example: {PROGRAM} generate "a green armchair" (see {PROGRAM} --help)')
    if first is not None and first not in commands:
        raise UserError(f"unknown command {first!r} (known: {', '.join(commands)}){suggestion(first, commands)}")
    arguments, leftovers = parser.parse_known_args(words)
    arguments.problems = leftover_lines(commands[arguments.command], leftovers)
    return arguments


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(prog=PROGRAM, description="Text to 3D by score distillation with SDS-Bridge.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    parser.add_argument("--verbose", action="store_true", help=VERBOSE_HELP)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    made = {}
    for name, usage, says, add in _COMMANDS:
        made[name] = commands.add_parser(
            name,
            usage=f"{PROGRAM} {name} {usage}",
            help=says,
            description=f"{says[0].upper()}{says[1:]}.",
            allow_abbrev=False,
            formatter_class=wide_help,
        )
        made[name].add_argument("--verbose", action="store_true", help=VERBOSE_HELP)
        add(made[name])
    return parser, made


def _add_generate(parser: Parser) -> None:
    _add_request(parser, "run directory (default: runs/<prompt>-s<seed>)", "DIR")
    add_settings(parser, GenerateConfig)
    parser.set_defaults(run=generate)


def _add_image(parser: Parser) -> None:
    _add_request(parser, "image file (default: images/<prompt>-s<seed>.png)", "FILE")
    add_settings(parser, ImageConfig)
    parser.set_defaults(run=image)


def _add_export(parser: Parser) -> None:
    parser.add_argument("path", metavar="RUN", type=Path, help="a run directory")
    says = "mesh file: .glb, .gltf, .obj, .ply, .stl or .usdz (default: export.glb in the run directory)"
    parser.add_argument("--out", metavar="FILE", type=Path, help=says)
    add_settings(parser, GenerateConfig, sections=("mesh",), plain=("device", "backend"))
    parser.set_defaults(run=export)


def _add_inspect(parser: Parser) -> None:
    parser.add_argument("path", metavar="FILE", type=Path, help="a mesh file, of ours or not")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=inspect)


def _add_batch(parser: Parser) -> None:
    says = "prompts, one a line, or JSONL or CSV with settings; or `status` and the file or folder of a batch"
    parser.add_argument("words", metavar="FILE", nargs="+", help=says)
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of the run directories (default: runs/<file>)")
    add_workers(parser)
    _add_config(parser)
    add_settings(parser, GenerateConfig)
    parser.set_defaults(run=batch)


def _add_evaluate(parser: Parser) -> None:
    add_evaluate_options(parser)
    _add_config(parser)
    add_settings(parser, GenerateConfig)
    parser.set_defaults(run=evaluate)


def _add_priors(parser: Parser) -> None:
    says = "list; pull ALIAS ...; verify [ALIAS ...] (default: all that were pulled)"
    parser.add_argument("words", metavar="ACTION", nargs="+", help=says)
    parser.add_argument("--to", metavar="DIR", type=Path, help="pull: a folder to put the model in, to carry elsewhere")
    parser.add_argument("--non-commercial", action="store_true", help="pull: take a licence without commercial use")
    parser.set_defaults(run=priors)


def _add_doctor(parser: Parser) -> None:
    parser.set_defaults(run=doctor)


_COMMANDS: tuple[tuple[str, str, str, Callable[[Parser], None]], ...] = (
    ("generate", "PROMPT [options]", "make a textured 3D mesh from a prompt", _add_generate),
    ("image", "PROMPT [options]", "make a 2D image from a prompt by the same guidance", _add_image),
    ("export", "RUN [options]", "make the mesh of a run again; what is not given is as it was in the run", _add_export),
    ("inspect", "FILE [options]", "tell what is in a mesh file; exit status 0: sound, 1: not sound", _add_inspect),
    ("batch", "FILE [options]", "many runs; `batch status FILE` tells where they stand", _add_batch),
    (
        "evaluate",
        "prior|assets|methods [PLACE] [options]",
        "measure beside the true shapes: table, JSON, sheet",
        _add_evaluate,
    ),
    ("priors", "list|pull|verify [ALIAS ...]", "list, fetch and check the models, with their licences", _add_priors),
    ("doctor", "[options]", "tell what this machine can do, and how to mend what it cannot", _add_doctor),
)


def _add_request(parser: Parser, out_help: str, out_kind: str) -> None:
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help='what to make, for example "a green armchair"')
    parser.add_argument("--out", metavar=out_kind, type=Path, help=out_help)
    _add_config(parser)


def _add_config(parser: Parser) -> None:
    says = f"YAML file of settings, or a preset ({', '.join(presets())}); options on the command line go before it"
    parser.add_argument("--config", metavar="FILE", help=says)


def _explain(error: BaseException) -> int:
    """Say on standard error, a line for each problem, why the command ended; return the exit status."""
    if isinstance(error, Interrupted | KeyboardInterrupt):
        _write(sys.stderr, f"{PROGRAM}: {str(error) or 'interrupted'}")
        return 130
    if isinstance(error, UserError | RunError):
        lines = str(error).splitlines()
    else:
        lines = [f"unexpected {type(error).__name__}: {' '.join(str(error).split())} (--verbose shows where)"]
    _write(sys.stderr, "\n".join(f"{PROGRAM}: error: {line}" for line in lines))
    return 2 if isinstance(error, UserError) else 1


def _say(text: str) -> None:
    _write(sys.stdout, text)


def _write(stream: TextIO | None, text: str) -> None:
    """Print to `stream`; when its reader has gone, what follows goes nowhere and the work keeps its status."""
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        assert stream is not None  # print to None writes nothing
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _log_to_stderr(verbose: bool) -> None:
    logger = logging.getLogger("nerf_bridge")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
