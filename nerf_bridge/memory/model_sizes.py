"""The sizes of a prior from what lies on the disk: headers of safetensors and settings; no weights are read."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from nerf_bridge.config import ModelConfig
from nerf_bridge.errors import UserError
from nerf_bridge.memory.estimate import EncoderShape, ModelSizes, NetworkWork, transformer_numbers, unet_numbers
from nerf_bridge.prior.models.folder import ModelFolder

HALF, SINGLE = 2, 4
ITEMSIZE = {"float32": SINGLE, "bfloat16": HALF, "float16": HALF}
FLUX_LATENTS, FLUX_WORDS, SD3_WORDS = 128, 512, 333
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
EMBEDDED_NUMBERS = 1_361_000  # counted: alive at once in the embedded network for one image (2.6 MiB in bfloat16)
EMBEDDED_TEXT = 90 * 2**20  # its text encoder in float32, which stays
NO_ENCODER = EncoderShape((), 0, 0, SINGLE)


def read_sizes(found: ModelFolder, settings: ModelConfig, cuda: bool) -> ModelSizes:
    """The sizes of the model in `found`, in the precision in which it will be loaded.

    Raises:
        UserError: a file is missing or damaged, or the settings of a part are not those of a known family.
    """
    number = ITEMSIZE.get(settings.dtype, HALF if cuda else SINGLE)
    family, part = found.pipeline_class(), "transformer" if found.has("transformer") else "unet"
    tensors = list(part_numbers(found, part).values())
    try:
        encoder = _encoder(found, settings, number if cuda else SINGLE)
        work = _transformer_work(found, encoder) if part == "transformer" else _unet_work(found, encoder, settings)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"prior {found.name}: cannot tell its sizes: {type(error).__name__}: {error}") from None
    words = [sum(part_numbers(found, name).values()) for name in TEXT_ENCODERS if found.has(name)]
    return ModelSizes(
        network=number * sum(tensors),
        codec=_codec(found, encoder, _decoder_itemsize(family, number, settings.dtype)),
        words=(HALF if cuda else SINGLE) * max(words, default=0),
        largest_layer=number * max(tensors, default=0),
        work=NetworkWork(work, number),
        encoder=encoder,
        view_group=4 if family == "MVDreamPipeline" else 1,
    )


def embedded_sizes(folder: Path, cuda: bool) -> ModelSizes:
    """The sizes of the embedded prior, whose weights lie in `folder`."""
    tensors = [n for path in sorted(folder.glob("*.safetensors")) for n in header_numbers(path).values()]
    number = HALF if cuda else SINGLE
    work = NetworkWork(EMBEDDED_NUMBERS, number)
    return ModelSizes(number * sum(tensors) + EMBEDDED_TEXT, 0, 0, 0, work, NO_ENCODER, 1)


def part_numbers(found: ModelFolder, part: str) -> dict[str, int]:
    """Numbers in each tensor of the part's weights by name, those that will be loaded.

    Raises:
        UserError: as the loading does.
    """
    fp16 = found.variant(part) is not None
    names = [name for name in found.sha256 if name.startswith(f"{part}/") and name.endswith(".safetensors")]
    chosen = [name for name in names if (".fp16" in name) == fp16 and not name.endswith("_non_ema.safetensors")]
    try:
        return {tensor: n for name in chosen for tensor, n in header_numbers(found.path / name).items()}
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"prior {found.name}: cannot read the weights in {found.path / part}: {reason}") from None


def header_numbers(path: Path) -> dict[str, int]:
    """Numbers in each tensor of a safetensors file by name: its header is its length in 8 bytes, then JSON."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(min(length, 100 << 20)))
    return {name: math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}


def _codec(found: ModelFolder, encoder: EncoderShape, decoder_itemsize: int) -> int:
    """Bytes of the autoencoder's weights; the encoder's convolutions are there once more, turned for the gradient."""
    if not encoder.channels:
        return 0
    numbers = part_numbers(found, "vae")
    encoding = sum(n for name, n in numbers.items() if name.startswith(("encoder.", "quant_conv.")))
    return 2 * encoder.itemsize * encoding + decoder_itemsize * (sum(numbers.values()) - encoding)


def _decoder_itemsize(family: str, number: int, dtype: str) -> int:
    """SDXL's decoder overflows in float16 and is in float32 then; its encoder is not."""
    return SINGLE if family == "StableDiffusionXLPipeline" and number == HALF and dtype != "bfloat16" else number


def _encoder(found: ModelFolder, settings: ModelConfig, itemsize: int) -> EncoderShape:
    if not found.has("vae"):
        return NO_ENCODER
    config = found.config("vae")
    channels = tuple(int(c) for c in config["block_out_channels"])
    factor = 2 ** (len(channels) - 1)
    network = found.config("transformer" if found.has("transformer") else "unet")
    latents = network.get("sample_size") or network.get("image_size") or FLUX_LATENTS
    latents = FLUX_LATENTS if found.pipeline_class() == "FluxPipeline" else int(latents)
    return EncoderShape(channels, int(config["layers_per_block"]), settings.image_size or factor * latents, itemsize)


def _unet_work(found: ModelFolder, encoder: EncoderShape, settings: ModelConfig) -> int:
    config = found.config("unet")
    if "model_channels" in config:  # MVDream's own names
        channels = [config["model_channels"] * mult for mult in config["channel_mult"]]
        attention = [2**level in config["attention_resolutions"] for level in range(len(channels))]
    else:
        channels, attention = config["block_out_channels"], ["Attn" in name for name in config["down_block_types"]]
    size = _latents(encoder) if encoder.channels else settings.image_size or int(config["sample_size"])
    return unet_numbers(channels, attention, size)


def _transformer_work(found: ModelFolder, encoder: EncoderShape) -> int:
    config: dict[str, Any] = found.config("transformer")
    flux = found.pipeline_class() == "FluxPipeline"
    patch = 2 if flux else int(config["patch_size"])
    words = FLUX_WORDS if flux else SD3_WORDS
    tokens = (_latents(encoder) // patch) ** 2 + words
    return transformer_numbers(tokens, int(config["num_attention_heads"]) * int(config["attention_head_dim"]))


def _latents(encoder: EncoderShape) -> int:
    return encoder.size // 2 ** (len(encoder.channels) - 1)
