"""Prompt debiasing: words of the prompt that speak against a view are left out of that view's prompt.

Hong, Ahn and Kim 2023, "Debiasing Scores and Prompts of 2D Diffusion for View-consistent Text-to-3D Generation",
section 4.2: a masked language model tells how well each view goes with the prompt, P(view | prompt). A word without
which the view becomes likelier contradicts it: "a smiling dog" has no smile from behind.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nerf_bridge.config import GuidanceConfig
from nerf_bridge.errors import UserError
from nerf_bridge.prior.models.folder import ModelFolder
from nerf_bridge.prompts import VIEWS

logger = logging.getLogger(__name__)

SENTENCE = "This image is depicting a {mask} view of {prompt}"
LEAST_RATIO = 0.95  # of P(view | prompt) to P(view | prompt without the word), below which the word goes

ViewProbabilities = Callable[[Sequence[str]], Tensor]  # n prompts -> [n, 4], one column for each of VIEWS


def prompts_by_view(prompt: str, settings: GuidanceConfig, offline: bool) -> tuple[str, ...] | None:
    """The prompt of each of VIEWS without the words that contradict it; None when debiasing is off.

    Args:
        settings: names the language model, and the words that may go.
        offline: whether the hub may not be asked for the model.

    Raises:
        UserError: the language model is not there or cannot be used, or a word that may go is not in the prompt.
    """
    if settings.debias is None:
        return None
    removable = [word.strip() for word in (settings.debias_words or "").split(",") if word.strip()]
    absent = [word for word in removable if word not in prompt.split()]
    if absent:
        raise UserError(f"guidance.debias_words: {', '.join(absent)} not among the words of the prompt {prompt!r}")
    from nerf_bridge.prior.catalogue.find import find_language_model  # loads the hub's library: only when used

    folder = find_language_model(settings.debias, offline)
    debiased = debiased_prompts(prompt, read_views(folder), removable or prompt.split())
    for view, words in zip(VIEWS, debiased, strict=True):
        logger.info("prompt for the %s: %s", view, words)
    return debiased


def debiased_prompts(prompt: str, probabilities: ViewProbabilities, removable: Sequence[str]) -> tuple[str, ...]:
    """The prompt of each view without the words u of `removable` with P(v | y) / P(v | y without u) < 0.95.

    A prompt of which nothing would be left stays whole.
    """
    words = prompt.split()
    candidates = [i for i, word in enumerate(words) if word in removable]
    if len(words) < 2 or not candidates:
        return (prompt,) * len(VIEWS)
    shortened = [" ".join(words[:i] + words[i + 1 :]) for i in candidates]
    full, *without = probabilities([prompt, *shortened])
    ratios = full / torch.stack(without)  # [candidates, views]
    result = []
    for view in range(len(VIEWS)):
        against = {i for i, ratio in zip(candidates, ratios[:, view].tolist(), strict=True) if ratio < LEAST_RATIO}
        kept = " ".join(word for i, word in enumerate(words) if i not in against)
        result.append(kept or prompt)
    return tuple(result)


def read_views(folder: ModelFolder) -> ViewProbabilities:
    """P(view | prompt) by the masked language model (BERT) in `folder`, normalised over the four views.

    Raises:
        UserError: its files are missing or damaged, or its vocabulary lacks a view.
    """
    from transformers import AutoTokenizer, BertForMaskedLM

    try:
        with folder.recorded("") as place:
            tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
            model = BertForMaskedLM.from_pretrained(place, local_files_only=True, use_safetensors=True).eval()
    except UserError:
        raise
    except Exception as error:  # the library raises many kinds, all of which mean that the files are not right
        raise UserError(f"guidance.debias: {folder.unreadable('', error)}") from None
    names = [view.removesuffix(" view") for view in VIEWS]
    ids = [tokenizer.convert_tokens_to_ids(name) for name in names]
    if tokenizer.unk_token_id in ids or tokenizer.mask_token_id is None:
        wanted = ", ".join(names)
        raise UserError(f"guidance.debias: the language model in {folder.path} does not know the words {wanted}")

    @torch.no_grad()
    def probabilities(prompts: Sequence[str]) -> Tensor:
        sentences = [SENTENCE.format(mask=tokenizer.mask_token, prompt=prompt) for prompt in prompts]
        said = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
        at_mask = model(**said).logits[said.input_ids == tokenizer.mask_token_id]
        return at_mask[:, ids].softmax(-1)

    return probabilities
