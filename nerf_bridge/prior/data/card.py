"""The data card: what the training library holds, and whom it is owed to, written from the packed library itself.

Run it as ``python -m nerf_bridge.prior.data.card --library library.npz --out DATA_CARD.md``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nerf_bridge.prior.data.holdout import holdout_json
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.data.pack import load_library
from nerf_bridge.run.files import write_text

_LICENCE_LINKS = {
    "CC0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY 3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY 3.0 US": "https://creativecommons.org/licenses/by/3.0/us/",
}

_INTRODUCTION = """# Data card of the embedded prior

The embedded diffusion prior is trained from scratch on renders of the models listed here and of procedural solids,
and on no other images. Its text encoder, all-MiniLM-L6-v2 (Apache-2.0), was trained by others and is used as it is.

## Sources

- `sweethome3d-furniture` 1.8 (Debian main): five catalogues of models made by Scopia (© Scopia Visual Interfaces
  Systems and Emmanuel Puybaret / eTeks), Kator Legaz (© Andrew Kator and Jennifer Legaz), Reallusion (© Reallusion),
  and by the users of Blend Swap, converted to OBJ by Emmanuel Puybaret (eTeks). Creator and licence of every model
  below are those of the catalogues' own files, and where a model's own licence file asks for more, of that file.
- Procedural solids, single and in pairs, made by this package.

## What was changed

Models were scaled, turned to a common front, reduced to a few thousand faces and given one colour for each face;
textures were averaged over faces; glass became a pale surface. In training images what shows most of a model
also appears in other colours. Left out: plugs, switches, marks on roads, and what covers less than 2 % of an image.

## What it is for, and its limits

- Everyday objects: furniture, kitchen, bathroom, lamps, plants, vehicles, toys, tools, clothes, a few animals and
  people. Most nouns have one or two models, so that their shape can only be remembered, not generalised.
- Flat colours under one fixed light, at 64 x 64 pixels. Captions are English: nouns, colours, a few materials.
- People are few, lightly varied adults and children of stock catalogues; they carry no colour words and are never
  recoloured. The set says nothing about how people look.
- Some models depict products of known makers; makers are not named in captions (one toy, the Rubik's cube, is).
- Models and (noun, colour) pairs kept out of training, for evaluation, are listed in `holdout.json`.
"""


def data_card(models: Sequence[LibraryModel]) -> str:
    """Write the card of a library as Markdown, with attributions by licence and creator.

    Args:
        models: the library.

    Returns:
        The text.
    """
    sections = [_INTRODUCTION, _numbers(models), "## Attributions\n"]
    for licence in sorted({model.licence for model in models}):
        of_licence = [m for m in models if m.licence == licence and m.category != "Primitives"]
        link = _LICENCE_LINKS.get(licence, "")
        sections.append(f"### {licence} {f'({link})' if link else ''}\n\n" + _creators(of_licence))
    return "\n".join(sections)


def _numbers(models: Sequence[LibraryModel]) -> str:
    real = [model for model in models if model.category != "Primitives"]
    nouns = Counter(model.noun for model in real)
    common = ", ".join(f"{noun} {count}" for noun, count in nouns.most_common(12))
    rows = [
        ("models from the catalogues", len(real)),
        ("procedural solids and pairs", len(models) - len(real)),
        ("nouns of the catalogue models", len(nouns)),
        ("models that can be tinted", sum(bool(model.face_tintable.any()) for model in models)),
        ("models held out", sum(model.holdout for model in models)),
        ("faces", sum(len(model.faces) for model in models)),
    ]
    table = "\n".join(f"| {label} | {value:,} |" for label, value in rows)
    return f"## Numbers\n\n| | |\n| --- | --- |\n{table}\n\nMost models: {common}.\n"


def _creators(models: Sequence[LibraryModel]) -> str:
    by_creator: dict[str, list[str]] = {}
    for model in models:
        by_creator.setdefault(model.creator, []).append(model.name.partition("#")[2])
    rows = [
        f"| {creator} | {len(names)} | {', '.join(sorted(names, key=str.lower))} |"
        for creator, names in sorted(by_creator.items(), key=lambda item: item[0].lower())
    ]
    return "| Creator | Models | Names in the catalogue |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the card from the command line."""
    parser = argparse.ArgumentParser(prog="python -m nerf_bridge.prior.data.card", description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, required=True, help="the packed library")
    parser.add_argument("--out", type=Path, required=True, help="the Markdown file to write")
    parser.add_argument("--holdout", type=Path, help="also the JSON file of what is held out")
    options = parser.parse_args(arguments)
    models = load_library(options.library)
    write_text(options.out, data_card(models))
    if options.holdout:
        write_text(options.holdout, holdout_json(models))


if __name__ == "__main__":
    main()
