"""The words of each family: its text encoders, loaded one at a time and freed after use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nerf_bridge.errors import UserError
from nerf_bridge.prior.models.folder import ModelFolder
from nerf_bridge.prior.models.lora import Lora, apply_text_loras
from nerf_bridge.prior.protocol import PromptEmbeddings

logger = logging.getLogger(__name__)

ENCODING = 2  # raised when the same words are encoded in another way: what the cache holds is then made again
READ_TO_ENCODE = ("model_index.json", "text_encoder", "tokenizer", "transformer/config.json")  # files, by their start
CLIP_LENGTH, IF_LENGTH = 77, 77
SD3_T5_LENGTH = 256
FLUX_LENGTH, FLUX_SCHNELL_LENGTH = 512, 256


@dataclass(frozen=True)
class TextModels:
    """The text encoders of a model: where they are and how to run them.

    Attributes:
        loras: LoRAs that may change them.
    """

    folder: ModelFolder
    device: torch.device
    dtype: torch.dtype
    loras: tuple[Lora, ...] = ()


EncodeWords = Callable[[TextModels, Sequence[str]], PromptEmbeddings]


@torch.no_grad()
def encode_sd(models: TextModels, prompts: Sequence[str]) -> PromptEmbeddings:
    """Stable Diffusion and MVDream: the last states of CLIP's text model."""
    return embeddings(_clip(models, "", prompts).last_hidden_state)


@torch.no_grad()
def encode_sdxl(models: TextModels, prompts: Sequence[str]) -> PromptEmbeddings:
    """SDXL: the states before the last of both CLIPs side by side, and the second one's projected text.

    The empty prompt is zeros where the model was trained so (force_zeros_for_empty_prompt).
    """
    first, second = (_clip(models, suffix, prompts) for suffix in ("", "_2"))
    tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
    pooled = second.text_embeds
    if models.folder.read_json("model_index.json").get("force_zeros_for_empty_prompt", True):
        spoken = torch.tensor([bool(prompt.strip()) for prompt in prompts], device=tokens.device)
        tokens, pooled = tokens * spoken[:, None, None], pooled * spoken[:, None]
    return embeddings(tokens, pooled)


@torch.no_grad()
def encode_if(models: TextModels, prompts: Sequence[str]) -> PromptEmbeddings:
    """DeepFloyd IF: T5's states of 77 tokens, in lower case; padding is not attended to."""
    return embeddings(_t5(models, "", [prompt.lower().strip() for prompt in prompts], IF_LENGTH, masked=True))


@torch.no_grad()
def encode_sd3(models: TextModels, prompts: Sequence[str]) -> PromptEmbeddings:
    """SD3: both CLIPs side by side, padded to T5's width, then T5's tokens; both projected texts as pooled.

    A folder without T5 (text_encoder_3) gets zeros for it, as SD3 was trained to bear.
    """
    first, second = (_clip(models, suffix, prompts) for suffix in ("", "_2"))
    clip = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
    pooled = torch.cat([first.text_embeds, second.text_embeds], -1)
    width = int(models.folder.config("transformer")["joint_attention_dim"])
    if models.folder.has("text_encoder_3"):
        t5 = _t5(models, "_3", prompts, SD3_T5_LENGTH, masked=False)
    else:
        t5 = clip.new_zeros(len(prompts), SD3_T5_LENGTH, width)
    clip = torch.nn.functional.pad(clip, (0, width - clip.shape[-1]))
    return embeddings(torch.cat([clip, t5.to(clip.dtype)], 1), pooled)


@torch.no_grad()
def encode_flux(models: TextModels, prompts: Sequence[str]) -> PromptEmbeddings:
    """FLUX: T5's tokens (256 for schnell, else 512), and CLIP's pooled text."""
    distilled = bool(models.folder.config("transformer").get("guidance_embeds", False))
    pooled = _clip(models, "", prompts).pooler_output
    tokens = _t5(models, "_2", prompts, FLUX_LENGTH if distilled else FLUX_SCHNELL_LENGTH, masked=False)
    return embeddings(tokens, pooled.to(tokens.dtype))


def embeddings(tokens: Tensor, pooled: Tensor | None = None) -> PromptEmbeddings:
    """All tokens count: these networks were trained to see the padding too."""
    return PromptEmbeddings(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device), pooled)


def _clip(models: TextModels, suffix: str, prompts: Sequence[str]) -> Any:
    """What the CLIP text model text_encoder<suffix> says of `prompts`, with all hidden states."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    ids, _ = _tokens(models, CLIPTokenizer, f"tokenizer{suffix}", prompts, CLIP_LENGTH)
    named = models.folder.config(f"text_encoder{suffix}").get("architectures") or ["CLIPTextModel"]
    encoder_class = CLIPTextModelWithProjection if "WithProjection" in named[0] else CLIPTextModel
    encoder = models.folder.load(f"text_encoder{suffix}", encoder_class, models.dtype, models.device)
    apply_text_loras(encoder, f"text_encoder{suffix}", models.folder.pipeline_class(), models.loras)
    said = encoder(ids, output_hidden_states=True)
    _free(encoder)
    return said


def _t5(models: TextModels, suffix: str, prompts: Sequence[str], length: int, masked: bool) -> Tensor:
    """Last states [n, length, dim] of the T5 encoder text_encoder<suffix>."""
    from transformers import T5EncoderModel, T5Tokenizer

    ids, attended = _tokens(models, T5Tokenizer, f"tokenizer{suffix}", prompts, length)
    dtype = torch.bfloat16 if models.dtype == torch.float16 else models.dtype  # T5 overflows in float16
    encoder = models.folder.load(f"text_encoder{suffix}", T5EncoderModel, dtype, models.device)
    states = encoder(ids, attention_mask=attended if masked else None).last_hidden_state
    _free(encoder)
    return states


def _tokens(
    models: TextModels, tokenizer_class: Any, part: str, prompts: Sequence[str], length: int
) -> tuple[Tensor, Tensor]:
    """Token numbers and which of them are no padding, [n, length] each; what is cut off is told."""
    _check_vocabulary(models.folder, tokenizer_class, part)
    try:
        with models.folder.recorded(part) as place:
            tokenizer = tokenizer_class.from_pretrained(place, local_files_only=True)
    except UserError:
        raise
    except Exception as error:  # the library raises many kinds, all of which mean that the files are not right
        raise models.folder.unreadable(part, error) from None
    for prompt in prompts:
        if len(tokenizer(prompt, verbose=False).input_ids) > length:
            logger.warning("the prior reads at most %d tokens; the end of this is left out: %s", length, prompt)
    said = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return said.input_ids.to(models.device), said.attention_mask.to(models.device)


def _check_vocabulary(folder: ModelFolder, tokenizer_class: Any, part: str) -> None:
    """Raise UserError when the vocabulary is missing: the library would take an empty one, and all words for one."""
    whole = tokenizer_class.vocab_files_names["tokenizer_file"]
    if f"{part}/{whole}" not in folder.sha256:
        for kind, name in tokenizer_class.vocab_files_names.items():
            if kind != "tokenizer_file":
                folder.file(f"{part}/{name}")


def _free(encoder: nn.Module) -> None:
    """Give the memory of a text encoder back now: the network needs the room."""
    encoder.to("meta")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
