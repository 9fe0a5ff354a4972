"""Which files of a repository are taken."""

import pytest

from nerf_bridge.errors import UserError
from nerf_bridge.prior.catalogue.select import select_files

BASE = [
    "model_index.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
]
BASE += ["tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer_3/spiece.model"]
T5 = "text_encoder_3"


def shards(variant, n):
    return [f"{T5}/model{variant}-0000{i + 1}-of-0000{n}.safetensors" for i in range(n)]


def test_shards_come_with_their_index_in_either_spelling():
    for index in ("model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"):
        half = [*shards(".fp16", 2), f"{T5}/{index}"]
        plain = [*shards("", 2), f"{T5}/model.safetensors.index.json"]
        names = [*BASE, f"{T5}/config.json", *half, *plain]
        assert select_files("a/b", names) == sorted([*BASE, f"{T5}/config.json", *half])


def test_shards_without_an_index_are_no_weights():
    with pytest.raises(UserError, match="a/b has no safetensors in text_encoder_3/"):
        select_files("a/b", [*BASE, *shards("", 2)])


def test_deeper_folders_and_other_formats_are_left():
    unwanted = ["unet_onnx/model.onnx", "vae/old/diffusion_pytorch_model.safetensors", "v1-5.safetensors", "README.md"]
    unwanted += ["vae/flax_model.msgpack", "safety_checker/model.safetensors", "tokenizer/code.py"]
    assert select_files("a/b", [*BASE, *unwanted]) == sorted(BASE)
