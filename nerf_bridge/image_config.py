"""The settings of `image`. Knows nothing of torch, so that help and wrong arguments answer at once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError, field_validator

from nerf_bridge.config import GuidanceConfig, ModelConfig, Section, check_prompt
from nerf_bridge.errors import UserError
from nerf_bridge.settings import error_lines, nested


class ImageConfig(Section):
    """Everything that decides what `image` makes."""

    prompt: str = Field(description="what to picture")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of every random draw")
    prior: str = Field(
        "embedded", description="the diffusion prior: embedded, an alias of `nerf-bridge priors list`, or a folder"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to run")
    steps: int = Field(100, ge=1, le=1_000_000, description="optimisation steps")
    lr: float = Field(0.03, gt=0, le=10, description="learning rate of the image (Adam)")
    eps: float = Field(1e-8, gt=0, le=1, description="what Adam adds to the root of the second moment")
    weight_decay: float = Field(0.0, ge=0, le=1, description="decoupled weight decay (AdamW)")
    start: Literal["grey", "noise"] = Field(
        "grey", description="what the image starts from: grey with a little noise, or x drawn from N(0, 1)"
    )
    view: Literal["any", "front", "three-quarter", "side", "back"] = Field(
        "three-quarter", description="side from which a prior that knows cameras pictures the object"
    )
    upscale: int = Field(4, ge=1, le=32, description="pixels of the file along a side of each pixel of the image")
    model: ModelConfig = ModelConfig()
    guidance: GuidanceConfig = GuidanceConfig()

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompt(cls, value: object) -> object:
        check_prompt(value)
        return value


def build_image_config(settings: dict) -> ImageConfig:
    """Check `settings`, nested or with dotted names, and return the config.

    Raises:
        UserError: one line for every wrong setting, each with its dotted path, what came and what is allowed.
    """
    try:
        return ImageConfig.model_validate({"prompt": None} | nested(settings))
    except ValidationError as error:
        raise UserError("\n".join(error_lines(ImageConfig, error.errors()))) from None
