"""The diffusion priors: what an image of a prompt should look like."""

from __future__ import annotations

import torch

from nerf_bridge.config import ModelConfig
from nerf_bridge.errors import UserError
from nerf_bridge.prior.catalogue.entries import EMBEDDED
from nerf_bridge.prior.models.folder import ModelFolder
from nerf_bridge.prior.protocol import Prior, PriorInfo, PromptEmbeddings, ViewCondition

__all__ = ["Prior", "PriorInfo", "PromptEmbeddings", "ViewCondition", "check_prior_name", "find_prior", "load_prior"]

_DEFAULT = ModelConfig()
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_prior_name(name: str) -> None:
    """Raise UserError, saying what is known, unless `name` is a prior or a folder with one. Loads nothing."""
    if name != EMBEDDED:
        from nerf_bridge.prior.catalogue.find import check_name  # loads the hub's library: only when used

        check_name(name)


def find_prior(name: str, settings: ModelConfig | None = None) -> ModelFolder | None:
    """Where the prior called `name` lies on the disk, every file of it checked; None for the embedded one.

    Args:
        name: `embedded`, an alias of the catalogue (pulled from the hub when it is not there), or a folder in
            diffusers' format.
        settings: whether the hub may be asked, and what the user says of the licence.

    Raises:
        UserError: there is no such prior, it cannot be fetched, a file of it is missing or damaged, or its licence was
            not accepted.
    """
    check_prior_name(name)
    settings = settings or _DEFAULT
    if name == EMBEDDED:
        return None
    from nerf_bridge.prior.catalogue.find import find_model

    return find_model(name, settings.non_commercial, settings.offline)


def load_prior(
    name: str,
    device: torch.device | str = "cpu",
    settings: ModelConfig | None = None,
    found: ModelFolder | None = None,
    words_device: torch.device | None = None,
) -> Prior:
    """Load the prior called `name` for `device`; the networks of a big one come there when they are first used.

    Args:
        name: as in `find_prior`.
        settings: precision, size, LoRAs and the hub; the embedded prior has none of these.
        found: what `find_prior` gave; None: it is looked for now.
        words_device: where the text encoders run; None: on `device` too.

    Raises:
        UserError: there is no such prior, a file of it is missing or damaged, or a setting does not suit it.
    """
    check_prior_name(name)
    settings = settings or _DEFAULT
    if name == EMBEDDED:
        changed = [
            key
            for key in ("dtype", "image_size", "loras", "compile")
            if getattr(settings, key) != getattr(_DEFAULT, key)
        ]
        if changed:
            raise UserError(f"model.{changed[0]} is for other priors: the embedded one is as it is; leave it out")
        from nerf_bridge.prior.embedded import load_embedded  # loads the text encoder's libraries: only when used

        return load_embedded(torch.device(device))
    from nerf_bridge.prior.models.load import LoadOptions, load_model
    from nerf_bridge.prior.models.lora import parse_loras
    from nerf_bridge.prior.models.prompt_cache import prompt_folder

    options = LoadOptions(
        device=torch.device(device),
        words_device=words_device or torch.device(device),
        dtype=DTYPES[settings.dtype],
        image_size=settings.image_size,
        loras=parse_loras(settings.loras or ""),
        non_commercial=settings.non_commercial,
        prompt_folder=prompt_folder(),
        compile=settings.compile,
    )
    found = found or find_prior(name, settings)
    assert found is not None, "only the embedded prior has no folder"
    return load_model(found, options)
