"""From a model's folder to a prior: which family it is, and its parts put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nerf_bridge.errors import UserError
from nerf_bridge.prior.models.codec import LatentCodec, PixelCodec
from nerf_bridge.prior.models.denoisers import (
    DeepFloyd,
    Denoiser,
    Flux,
    StableDiffusion,
    StableDiffusion3,
    StableDiffusionXL,
)
from nerf_bridge.prior.models.folder import ModelFolder
from nerf_bridge.prior.models.lora import Lora, apply_loras
from nerf_bridge.prior.models.mvdream import MVDream, load_mvdream_unet
from nerf_bridge.prior.models.noise import RectifiedFlow, read_process
from nerf_bridge.prior.models.prior import DiffusersPrior
from nerf_bridge.prior.models.prompt_cache import CachedWords
from nerf_bridge.prior.models.text import (
    EncodeWords,
    TextModels,
    encode_flux,
    encode_if,
    encode_sd,
    encode_sd3,
    encode_sdxl,
)
from nerf_bridge.prior.models.vae_weights import check_structure
from nerf_bridge.prior.protocol import PriorInfo

FLUX_SAMPLE_SIZE = 128  # latents along a side
HOST = torch.device("cpu")


@dataclass(frozen=True)
class LoadOptions:
    """How to load a model.

    Attributes:
        device: where it runs; its networks are loaded into main memory and come there when they are first used.
        words_device: where its text encoders run.
        dtype: of the network; None: half precision on a GPU, as the family was trained, and float32 on a CPU.
        image_size: pixels along a side of the images that it sees; None: what it was trained at.
        loras: changes of the weights.
        non_commercial: whether the user takes a licence that forbids commercial use.
        prompt_folder: where encoded prompts are kept.
        compile: on a GPU, "auto" compiles the network beside the steps, "on" before them, and both run it and the
            encoder as CUDA graphs; "off" does neither.
    """

    device: torch.device
    words_device: torch.device
    dtype: torch.dtype | None
    image_size: int | None
    loras: tuple[Lora, ...]
    non_commercial: bool
    prompt_folder: Path
    compile: Literal["auto", "on", "off"] = "auto"


def load_model(folder: ModelFolder, options: LoadOptions) -> DiffusersPrior:
    """The prior in `folder`, by the pipeline that its model_index.json names.

    Raises:
        UserError: the family is not known, a file is missing or damaged, or an option does not suit the family.
    """
    families: dict[str, Callable[[ModelFolder, LoadOptions], DiffusersPrior]] = {
        "StableDiffusionPipeline": load_stable_diffusion,
        "StableDiffusionXLPipeline": load_sdxl,
        "IFPipeline": load_deepfloyd,
        "StableDiffusion3Pipeline": load_sd3,
        "FluxPipeline": load_flux,
        "MVDreamPipeline": load_mvdream,
    }
    name = folder.pipeline_class()
    if name not in families:
        raise UserError(f"prior {folder.name}: no prior is made from a {name} (known: {', '.join(families)})")
    return families[name](folder, options)


def load_stable_diffusion(folder: ModelFolder, options: LoadOptions) -> DiffusersPrior:
    """SD 1.5 and 2.1: latents, epsilon or v."""
    from diffusers import UNet2DConditionModel

    unet = _network(folder, options, "unet", UNet2DConditionModel, torch.float16)
    codec = _latents(folder, options, unet.config.sample_size, 1, unet.dtype)
    _check_channels(folder, unet, codec)
    return _assemble(folder, options, codec, StableDiffusion(unet), encode_sd)


def load_sdxl(folder: ModelFolder, options: LoadOptions) -> DiffusersPrior:
    """SDXL: latents, with its sizes and pooled prompts; its decoder overflows in float16 and stays in float32.

    A small size, told as it is, would ask for what small pictures look like: it is told the trained size at least.
    """
    from diffusers import UNet2DConditionModel

    unet = _network(folder, options, "unet", UNet2DConditionModel, torch.float16)
    vae_dtype = torch.float32 if unet.dtype == torch.float16 else unet.dtype
    codec = _latents(folder, options, unet.config.sample_size, 1, vae_dtype, unet.dtype)
    _check_channels(folder, unet, codec)
    told_size = max(codec.image_size, codec.multiple * unet.config.sample_size)
    denoiser = StableDiffusionXL(unet, told_size, options.device)
    return _assemble(folder, options, codec, denoiser, encode_sdxl)


def load_deepfloyd(folder: ModelFolder, options: LoadOptions) -> DiffusersPrior:
    """DeepFloyd IF, stage I: pixels."""
    from diffusers import UNet2DConditionModel

    if options.loras:
        raise UserError(f"model.loras: prior {folder.name} is of a family for which there are no LoRAs")
    unet = _network(folder, options, "unet", UNet2DConditionModel, torch.float16)
    if unet.config.in_channels != 3:
        raise UserError(f"prior {folder.name}: only stage I of DeepFloyd IF makes images of words; this is another one")
    multiple = 2 ** (len(unet.config.block_out_channels) - 1)
    _check_size(options.image_size, multiple, folder.name)
    codec = PixelCodec(options.image_size or unet.config.sample_size, multiple)
    return _assemble(folder, options, codec, DeepFloyd(unet), encode_if)


def load_sd3(folder: ModelFolder, options: LoadOptions) -> DiffusersPrior:
    """SD3 and SD3.5: latents, rectified flow."""
    from diffusers import SD3Transformer2DModel

    transformer = _network(folder, options, "transformer", SD3Transformer2DModel, torch.bfloat16)
    settings = transformer.config
    codec = _latents(folder, options, settings.sample_size, settings.patch_size, transformer.dtype)
    return _assemble(folder, options, codec, StableDiffusion3(transformer), encode_sd3, flow_scale=1000.0)


def load_flux(folder: ModelFolder, options: LoadOptions) -> DiffusersPrior:
    """FLUX.1: latents in patches, rectified flow. Its default is 1024 pixels, which no file of it says.

    dev, which is distilled to a guidance scale, has a licence without commercial use, wherever its files come from.
    """
    from diffusers import FluxTransformer2DModel

    if folder.config("transformer").get("guidance_embeds", False) and not options.non_commercial:
        raise UserError(
            f"prior {folder.name} is FLUX.1 dev or made from it: its licence forbids commercial use; to use it so, say "
            f"--model.non_commercial true, or take flux-schnell"
        )
    transformer = _network(folder, options, "transformer", FluxTransformer2DModel, torch.bfloat16)
    codec = _latents(folder, options, FLUX_SAMPLE_SIZE, 2, transformer.dtype)
    return _assemble(folder, options, codec, Flux(transformer), encode_flux, flow_scale=1.0)


def load_mvdream(folder: ModelFolder, options: LoadOptions) -> DiffusersPrior:
    """MVDream: latents, epsilon, four views at a time with their cameras."""
    if options.loras:
        raise UserError(f"model.loras: prior {folder.name} is of a family for which there are no LoRAs")
    dtype = options.dtype or _half(options.device, torch.float16)
    network = load_mvdream_unet(folder, dtype)
    codec = _latents(folder, options, network.image_size, 1, dtype)
    return _assemble(folder, options, codec, MVDream(network), encode_sd)


def _network(
    folder: ModelFolder,
    options: LoadOptions,
    part: str,
    network_class: Any,
    half: torch.dtype,
) -> Any:
    """The U-Net or transformer, with the user's LoRAs in its weights."""
    network = folder.load(part, network_class, options.dtype or _half(options.device, half), HOST)
    apply_loras(network, part, folder.pipeline_class(), options.loras)
    return network


def _half(device: torch.device, half: torch.dtype) -> torch.dtype:
    return half if device.type == "cuda" else torch.float32


def _latents(
    folder: ModelFolder,
    options: LoadOptions,
    sample_size: int,
    patch: int,
    dtype: torch.dtype,
    encoder_dtype: torch.dtype | None = None,
) -> LatentCodec:
    """The folder's autoencoder in `dtype`, for images of the asked size or of `sample_size` latents a side.

    `encoder_dtype` is asked for the encoder; None: `dtype`. Half precision is float16 there on a GPU, being precise
    enough for gradients where bfloat16 is not, and float32 on a CPU, which would round without being faster.
    """
    from diffusers import AutoencoderKL

    vae: Any = folder.load("vae", AutoencoderKL, dtype, HOST)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    _check_size(options.image_size, factor * patch, folder.name)
    size = options.image_size or factor * sample_size
    try:
        check_structure(vae)
    except UserError as error:
        raise UserError(f"prior {folder.name}: {error}") from None
    asked, half = encoder_dtype or dtype, (torch.float16, torch.bfloat16)
    asked = _half(options.device, torch.float16) if asked in half else asked
    graphs = options.device.type == "cuda" and options.compile != "off"
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
    return LatentCodec(vae, asked, graphs, size, factor * patch, scale, shift)


def _check_channels(folder: ModelFolder, unet: Any, codec: LatentCodec) -> None:
    if unet.config.in_channels != codec.vae.config.latent_channels:
        raise UserError(
            f"prior {folder.name}: its U-Net takes {unet.config.in_channels} channels where the autoencoder makes "
            f"{codec.vae.config.latent_channels}: a model for inpainting or editing is no prior; take its base model"
        )


def _check_size(size: int | None, multiple: int, name: str) -> None:
    if size is not None and size % multiple:
        raise UserError(f"model.image_size: prior {name} takes multiples of {multiple}, got {size}")


def _assemble(
    folder: ModelFolder,
    options: LoadOptions,
    codec: LatentCodec | PixelCodec,
    denoiser: Denoiser,
    encode: EncodeWords,
    flow_scale: float | None = None,
) -> DiffusersPrior:
    """The prior of these parts; `flow_scale` is the network's time at t = 1 for rectified flows."""
    process = (
        read_process(folder.read_json("scheduler/scheduler_config.json"), options.device)
        if flow_scale is None
        else RectifiedFlow(flow_scale)
    )
    text_dtype = options.dtype if options.dtype == torch.float64 else _half(options.device, torch.float16)
    models = TextModels(folder, options.words_device, text_dtype, options.loras)
    used = {f"lora {lora.path.name} x {lora.scale:g}": lora.sha256 for lora in options.loras}
    about = PriorInfo(folder.name, folder.licence, folder.source, folder.sha256 | used)
    words = CachedWords(models, encode, options.prompt_folder, options.device)
    return DiffusersPrior(about, process, codec, denoiser, words, options.device, options.compile)
