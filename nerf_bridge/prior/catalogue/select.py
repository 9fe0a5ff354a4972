"""Which files of a repository are worth fetching: one set of safetensors for each part, settings and tokenizers."""

from __future__ import annotations

from collections.abc import Collection

from nerf_bridge.errors import UserError

NETWORKS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
SMALL = (".json", ".txt", ".model")
INDEX = "model_index.json"
LANGUAGE_MODEL = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
NO_PARTS = "is not in diffusers' format"


def select_files(repository: str, names: Collection[str]) -> list[str]:
    """The files to fetch, sorted: never pickles, code, or a second precision of the same weights.

    Where a part has weights in float16 beside the full ones, the float16 ones are taken: half the size, and all that
    half precision can use.

    Raises:
        UserError: the repository is not in diffusers' format, or a part has no safetensors.
    """
    if INDEX not in names and LANGUAGE_MODEL[:2] == tuple(name for name in LANGUAGE_MODEL[:2] if name in names):
        return sorted(name for name in LANGUAGE_MODEL if name in names)
    if INDEX not in names:
        raise UserError(f"{repository} {NO_PARTS}: it has no {INDEX}")
    chosen = [INDEX]
    for folder in sorted({name.split("/")[0] for name in names if name.count("/") == 1}):
        files = sorted(name for name in names if name.startswith(f"{folder}/") and name.count("/") == 1)
        if folder in NETWORKS:
            chosen += [name for name in files if name.endswith("/config.json")] + _weights(repository, folder, files)
        elif folder == "scheduler" or folder.startswith("tokenizer"):
            chosen += [name for name in files if name.endswith(SMALL)]
    return sorted(chosen)


def _weights(repository: str, folder: str, files: list[str]) -> list[str]:
    """One precision of a part's weights, with the index of its shards."""
    stem = "model" if folder.startswith("text_encoder") else "diffusion_pytorch_model"
    for variant in (".fp16", ""):
        start = f"{folder}/{stem}{variant}"
        index = [name for name in files if name in _index_names(folder, stem, variant)]
        shards = [name for name in files if name.startswith(f"{start}-") and name.endswith(".safetensors")]
        if f"{start}.safetensors" in files:
            return [f"{start}.safetensors"]
        if shards and index:
            return [*shards, *index]
    held = ", ".join(name.split("/")[1] for name in files) or "nothing"
    raise UserError(f"{repository} has no safetensors in {folder}/ (it has {held}); only safetensors are read")


def _index_names(folder: str, stem: str, variant: str) -> tuple[str, str]:
    """Both ways in which the index of shards is called, with the variant before or after the kind."""
    return (f"{folder}/{stem}.safetensors.index{variant}.json", f"{folder}/{stem}{variant}.safetensors.index.json")
