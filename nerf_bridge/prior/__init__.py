"""The diffusion priors: what an image of a prompt should look like."""

from __future__ import annotations

import difflib

import torch

from nerf_bridge.errors import UserError
from nerf_bridge.prior.protocol import Prior, PriorInfo, PromptEmbeddings, ViewCondition

__all__ = ["KNOWN_PRIORS", "Prior", "PriorInfo", "PromptEmbeddings", "ViewCondition", "check_prior_name", "load_prior"]

KNOWN_PRIORS = ("embedded",)


def check_prior_name(name: str) -> None:
    """Raise UserError, listing what is known, unless `name` is a known prior. Loads nothing."""
    if name in KNOWN_PRIORS:
        return
    close = difflib.get_close_matches(name.lower(), KNOWN_PRIORS, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise UserError(f"unknown prior '{name}' (known: {', '.join(KNOWN_PRIORS)}){hint}")


def load_prior(name: str, device: torch.device | str = "cpu") -> Prior:
    """Load the prior called `name` onto `device`.

    Raises:
        UserError: no prior has that name.
    """
    check_prior_name(name)
    from nerf_bridge.prior.embedded import load_embedded  # loads the text encoder's libraries: only when used

    return load_embedded(torch.device(device))
