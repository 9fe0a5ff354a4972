"""Of a model with a lock file, the recorded files are read and no others, whatever lies beside them."""

import shutil
import tempfile

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel

from nerf_bridge.errors import UserError
from nerf_bridge.prior import load_prior
from nerf_bridge.prior.catalogue.lock import LOCK_NAME, LockedModel, hash_files, record
from nerf_bridge.prior.models.prompt_cache import prompt_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NERF_BRIDGE_CACHE", str(tmp_path / "cache"))


def lock(folder, names):
    record(folder / LOCK_NAME, "sd15", LockedModel("any/repository", "1" * 40, hash_files(folder, names)))


def in_shards(folder):
    """The text encoder of `folder` in shards and in one file that was never recorded, all zeros."""
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    (folder / "text_encoder" / "model.safetensors").unlink()
    encoder.save_pretrained(folder / "text_encoder", max_shard_size="20KB")
    zeros = {name: torch.zeros_like(value) for name, value in encoder.state_dict().items()}
    return lambda: save_file(zeros, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})


def with_added_tokens(folder):
    return lambda: (folder / "tokenizer" / "added_tokens.json").write_text('{"chair": 3}')


def with_adapter(folder):
    return lambda: (folder / "text_encoder" / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize("prepare", [in_shards, with_added_tokens, with_adapter])
def test_what_the_libraries_would_read_beside_the_recorded_files_changes_nothing(prepare, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("sd-epsilon"), tmp_path / "model")
    add = prepare(folder)
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    lock(folder, names)
    expected = load_prior(str(folder)).encode_prompts(["a chair"]).tokens
    shutil.rmtree(prompt_folder())
    add()
    assert torch.equal(load_prior(str(folder)).encode_prompts(["a chair"]).tokens, expected)


def test_a_needed_file_that_was_never_recorded_is_told(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("sd-epsilon"), tmp_path / "model")
    lock(folder, ["model_index.json", "unet/diffusion_pytorch_model.safetensors"])
    with pytest.raises(UserError, match="unet/config.json was never recorded, and is not read; delete the model's"):
        load_prior(str(folder))


def test_the_links_to_recorded_files_are_gone_afterwards(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "links").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "links"))
    load_prior(str(tiny_model("sd-epsilon"))).encode_prompts(["a chair"])
    assert list((tmp_path / "links").iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="cannot make links to its files: .*; set TMPDIR to a folder where"):
        load_prior(str(tiny_model("sd-epsilon")))
