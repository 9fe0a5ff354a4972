"""Pipelines of every family in diffusers' own format, so small that a run with one takes seconds; random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import sentencepiece
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    IFPipeline,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from nerf_bridge.prior.catalogue.lock import hash_files
from nerf_bridge.prior.models.folder import ModelFolder
from nerf_bridge.prior.models.load import LoadOptions, load_model
from nerf_bridge.prior.models.mvdream_unet import MVDreamUNet, read_config
from nerf_bridge.prior.models.prior import DiffusersPrior

FAMILIES = ("sd-epsilon", "sd-v", "sdxl", "if", "sd3", "flux", "mvdream")
WIDTH = 32  # of the words
CPU = torch.device("cpu")
SENTENCES = ("a green chair, front view", "high quality, sharp, detailed table", "the quick brown fox jumps", "foggy")


def build(family: str, folder: Path) -> Path:
    """Write the tiny pipeline of `family` into `folder`, with the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        makers: dict[str, Any] = {
            "sd-epsilon": lambda: _stable_diffusion(folder, "epsilon"),
            "sd-v": lambda: _stable_diffusion(folder, "v_prediction"),
            "sdxl": lambda: _sdxl(folder),
            "if": lambda: _deepfloyd(folder),
            "sd3": lambda: _sd3(folder),
            "flux": lambda: _flux(folder),
            "mvdream": lambda: _mvdream(folder),
        }
        makers[family]()
    return folder


def load(
    folder: Path,
    cache: Path,
    dtype: torch.dtype = torch.float32,
    image_size: int | None = None,
    loras: tuple[Any, ...] = (),
    sha256: dict[str, str] | None = None,
    non_commercial: bool = True,
    device: torch.device = CPU,
    words_device: torch.device = CPU,
    compile: Literal["auto", "on", "off"] = "auto",
) -> DiffusersPrior:
    """The prior in `folder`, by the code that loads the big ones."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.*")) if path.is_file()]
    digests = hash_files(folder, names) | (sha256 or {})
    model = ModelFolder(str(folder), folder, "for tests", "random weights", digests, "build it again")
    options = LoadOptions(device, words_device, dtype, image_size, loras, non_commercial, cache, compile)
    return load_model(model, options)


def _stable_diffusion(folder: Path, predicts: str) -> None:
    scheduler = PNDMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=predicts,
        skip_prk_steps=True,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae=_vae(4),
        text_encoder=_clip(CLIPTextModel),
        tokenizer=_clip_tokenizer(folder.parent / f"{folder.name}-tokenizer"),
        unet=_unet(4, 4, WIDTH),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def _sdxl(folder: Path) -> None:
    tokenizer = _clip_tokenizer(folder.parent / f"{folder.name}-tokenizer")
    extra = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "transformer_layers_per_block": (1, 1)}
    StableDiffusionXLPipeline(
        vae=_vae(4),
        text_encoder=_clip(CLIPTextModel),
        text_encoder_2=_clip(CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=_unet(
            4, 4, 2 * WIDTH, **extra, projection_class_embeddings_input_dim=6 * 8 + WIDTH, use_linear_projection=True
        ),
        scheduler=DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    ).save_pretrained(folder)


def _deepfloyd(folder: Path) -> None:
    unet = _unet(
        3,
        6,
        WIDTH,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        encoder_hid_dim=WIDTH,
        sample_size=16,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        only_cross_attention=True,
        class_embed_type=None,
        resnet_time_scale_shift="scale_shift",
    )
    IFPipeline(
        tokenizer=_t5_tokenizer(folder.parent / f"{folder.name}-tokenizer"),
        text_encoder=_t5(),
        unet=unet,
        scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    for name in ("tokenizer.json", "spiece.model"):  # the published one has spiece.model and no tokenizer.json
        (folder / "tokenizer" / name).unlink(missing_ok=True)
    trained = folder.parent / f"{folder.name}-tokenizer" / "spiece.model"
    (folder / "tokenizer" / "spiece.model").write_bytes(trained.read_bytes())


def _sd3(folder: Path) -> None:
    tokenizer = _clip_tokenizer(folder.parent / f"{folder.name}-clip")
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH + 16,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        out_channels=4,
        pos_embed_max_size=16,
    )
    StableDiffusion3Pipeline(
        transformer=_shaken(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(4, shift_factor=0.0609, scaling_factor=1.5305),
        text_encoder=_clip(CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        text_encoder_2=_clip(CLIPTextModelWithProjection),
        tokenizer_2=tokenizer,
        text_encoder_3=_t5(2 * WIDTH + 16),
        tokenizer_3=_t5_tokenizer(folder.parent / f"{folder.name}-t5"),
    ).save_pretrained(folder)


def _flux(folder: Path) -> None:
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(4, 4, 8),
    )
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=_vae(4, shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=_clip(CLIPTextModel),
        tokenizer=_clip_tokenizer(folder.parent / f"{folder.name}-clip"),
        text_encoder_2=_t5(),
        tokenizer_2=_t5_tokenizer(folder.parent / f"{folder.name}-t5"),
        transformer=_shaken(transformer),
    ).save_pretrained(folder)


def _mvdream(folder: Path) -> None:
    """SD's parts beside a U-Net of its own, as the published folder has them."""
    _stable_diffusion(folder, "epsilon")
    settings = {
        "image_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": 1,
        "channel_mult": [1, 2],
        "attention_resolutions": [2, 1],
        "num_head_channels": 16,
        "transformer_depth": 1,
        "context_dim": WIDTH,
        "camera_dim": 16,
    }
    network = MVDreamUNet(read_config(settings))
    (folder / "unet" / "config.json").write_text(json.dumps({"_class_name": "MultiViewUNetModel"} | settings))
    save_file(network.state_dict(), folder / "unet" / "diffusion_pytorch_model.safetensors")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "MVDreamPipeline", "unet": ["mv_unet", "MultiViewUNetModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "unet" / "mv_unet.py").write_text("raise SystemExit('code of a model must not run')")


def _unet(channels: int, out_channels: int, words: int, **extra: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": out_channels,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": words,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**(settings | extra))


def _vae(latents: int, **extra: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latents,
        norm_num_groups=4,
        sample_size=16,
        **extra,
    )


def _shaken(network: torch.nn.Module) -> torch.nn.Module:
    """`network` with random values where it starts from zeros, so that time and words make a difference."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def _clip(model_class: Any) -> Any:
    return model_class(
        CLIPTextConfig(
            vocab_size=190,
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            projection_dim=WIDTH,
            bos_token_id=188,
            eos_token_id=189,
        )
    )


def _t5(width: int = WIDTH) -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=200, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def _clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """Letters, each alone and at the end of a word, in the two files of the published tokenizers."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(i) for i in range(33, 127)]
    words = [*letters, *[f"{letter}</w>" for letter in letters], "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, "pad_token": "<|endoftext|>"}))
    return CLIPTokenizer.from_pretrained(folder)


def _t5_tokenizer(folder: Path) -> T5Tokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sentences.txt").write_text("\n".join(SENTENCES * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "sentences.txt"),
        model_prefix=str(folder / "spiece"),
        vocab_size=80,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, "extra_ids": 0}))
    return T5Tokenizer.from_pretrained(folder)
