"""What is asked of a prior: nouns and colours drawn as if by lot, never by their results."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nerf_bridge.evaluate.truth import PALE, Request, read_prompt, shows
from nerf_bridge.prior.data.colours import MATERIAL_WORDS, TINT_WORDS
from nerf_bridge.prior.data.holdout import HELD_OUT_PAIRS, is_held_out, stable_order
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.data.nouns import with_article
from nerf_bridge.prior.data.primitives import CATEGORY as PRIMITIVES

COLOURS = tuple(word for word in TINT_WORDS if word not in MATERIAL_WORDS)


@dataclass(frozen=True)
class Case:
    """A request and the list it belongs to: "nouns", "held-out pairs" or "same nouns"."""

    group: str
    request: Request


def draw_cases(models: Sequence[LibraryModel], n_nouns: int) -> list[Case]:
    """`n_nouns` nouns each in a colour that was trained; all held-out pairs; and their nouns in colours that were.

    The last two lists differ in nothing but the colours, so that they show what holding out costs.
    """
    tintable = [model for model in models if model.category != PRIMITIVES and model.face_tintable.any()]
    articles = {model.noun: model.article for model in tintable}
    words = sorted(articles, key=lambda noun: stable_order(f"evaluate {noun}"))[:n_nouns]
    chosen = [("nouns", noun, trained_colour(noun, "nouns")) for noun in words]
    pairs = [(noun, colour) for noun, colour in sorted(HELD_OUT_PAIRS) if noun in articles]
    chosen += [("held-out pairs", noun, colour) for noun, colour in pairs]
    chosen += [("same nouns", noun, trained_colour(noun, f"instead of {colour}", PALE)) for noun, colour in pairs]
    cases = []
    for group, noun, colour in chosen:
        prompt = with_article(f"{colour} {noun}", countable=bool(articles[noun]))
        cases.append(Case(group, read_prompt(prompt, [model for model in models if shows(model, colour)])))
    return cases


def trained_colour(noun: str, lot: str, without: Collection[str] = ()) -> str:
    """A colour, none of `without`, that is not held out for `noun` or what it is a kind of; `lot` names the draw."""
    allowed = [colour for colour in COLOURS if colour not in without and not is_held_out(noun, colour)]
    return min(allowed, key=lambda colour: stable_order(f"{lot} {noun} {colour}"))
