"""User LoRAs: low-rank changes of a model's weights, read from safetensors and melted into the weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
from torch import nn

from nerf_bridge.errors import UserError, one_line

ADAPTER = "lora"


@dataclass(frozen=True)
class Lora:
    """One LoRA file and how strongly it acts."""

    path: Path
    scale: float
    sha256: str


def parse_loras(text: str) -> tuple[Lora, ...]:
    """The LoRAs of a setting: `FILE` or `FILE:SCALE`, several separated by commas.

    Raises:
        UserError: a file is missing or no safetensors file, or a scale is no number.
    """
    return tuple(_parse(item.strip()) for item in text.split(",") if item.strip())


def _parse(item: str) -> Lora:
    name, _, scale = item.rpartition(":")
    path = Path(name if name and not Path(item).exists() else item)
    try:
        factor = float(scale) if path != Path(item) else 1.0
    except ValueError:
        raise UserError(f"model.loras: {item!r} has the scale {scale!r}; expected FILE or FILE:NUMBER") from None
    if path.suffix != ".safetensors":
        raise UserError(f"model.loras: {path} is no .safetensors file; only these are read, since they hold no code")
    try:
        return Lora(path, factor, hashlib.sha256(path.read_bytes()).hexdigest())
    except OSError as error:
        raise UserError(f"model.loras: cannot read {path}: {error.strerror or error}") from None


def apply_loras(network: Any, kind: str, pipeline: str, loras: tuple[Lora, ...]) -> None:
    """Add `scale` times each LoRA's change to the weights of `network`.

    Args:
        network: a U-Net or transformer of diffusers.
        kind: "unet" or "transformer".
        pipeline: the diffusers pipeline that knows how LoRAs of the family are named.

    Raises:
        UserError: a LoRA is damaged or of another family.
    """
    for lora in loras:
        state, alphas, metadata = _read(lora, kind, pipeline, network)
        if not any(name.startswith((f"{kind}.", "text_encoder")) for name in state):
            raise _misfit(lora, ValueError(f"it changes neither the {kind} nor the text encoders"))
        if not any(name.startswith(f"{kind}.") for name in state):
            continue
        try:
            network.load_lora_adapter(
                state, prefix=kind, network_alphas=alphas, metadata=metadata or None, adapter_name=ADAPTER
            )
            network.fuse_lora(lora_scale=lora.scale, adapter_names=[ADAPTER])
            network.unload_lora()
        except Exception as error:  # diffusers and peft raise many kinds: whatever it is, the file does not fit
            raise _misfit(lora, error) from None
    network.requires_grad_(False)


def apply_text_loras(encoder: nn.Module, part: str, pipeline: str, loras: tuple[Lora, ...]) -> None:
    """The same for the text encoder that the pipeline calls `part`; LoRAs without changes for it leave it as it is."""
    for lora in loras:
        state, alphas, metadata = _read(lora, "", pipeline, None)
        if not any(name.startswith(f"{part}.") for name in state):
            continue
        try:
            getattr(diffusers, pipeline).load_lora_into_text_encoder(
                state, alphas, encoder, prefix=part, lora_scale=1.0, adapter_name=ADAPTER, metadata=metadata or None
            )
            _melt(encoder, lora.scale)
        except Exception as error:
            raise _misfit(lora, error) from None
    encoder.requires_grad_(False)


def _melt(encoder: Any, scale: float) -> None:
    """Add the loaded LoRA's change to the weights and take its layers out again, so that the next can be loaded."""
    from diffusers.utils import recurse_remove_peft_layers
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in encoder.modules():
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            layer.scale_layer(scale)
            layer.merge()
    recurse_remove_peft_layers(encoder)
    encoder.delete_adapter(ADAPTER)


def _read(lora: Lora, kind: str, pipeline: str, network: Any) -> tuple[dict[str, Any], Any, Any]:
    """State, alphas and metadata of a LoRA file, its names brought to diffusers' own."""
    options: dict[str, Any] = {"use_safetensors": True, "return_lora_metadata": True}
    if kind == "unet":
        options["unet_config"] = network.config
    if pipeline == "FluxPipeline":
        options["return_alphas"] = True
    try:
        state, *alphas, metadata = getattr(diffusers, pipeline).lora_state_dict(str(lora.path), **options)
    except Exception as error:
        raise _misfit(lora, error) from None
    return state, alphas[0] if alphas else None, metadata


def _misfit(lora: Lora, error: BaseException) -> UserError:
    reason = one_line(error, 300)
    return UserError(f"model.loras: {lora.path} does not fit this model: {reason}; use a LoRA trained for it")
