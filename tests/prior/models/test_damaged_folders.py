"""Model folders that are not whole: one line that names the file and says what to do."""

import shutil

import pytest
from prior.models import tiny_models

from nerf_bridge.errors import UserError


def remove(folder, name):
    (folder / name).unlink()


def cut(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])


def pickle_only(folder, name):
    (folder / name).rename((folder / name).with_suffix(".bin"))


def of_another_model(folder, name):
    shutil.copy(folder / "vae" / "diffusion_pytorch_model.safetensors", folder / name)


@pytest.mark.parametrize("family", ["sd-epsilon", "mvdream"])
@pytest.mark.parametrize(
    ("damage", "name", "says"),
    [
        (remove, "model_index.json", "model_index.json is missing"),
        (remove, "scheduler/scheduler_config.json", "scheduler_config.json is missing"),
        (remove, "unet/config.json", "unet/config.json is missing"),
        (remove, "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors is missing"),
        (remove, "vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors is missing"),
        (cut, "unet/config.json", "/unet/config.json is no JSON: .*; build it again"),
        (cut, "unet/diffusion_pytorch_model.safetensors", "unet"),
        (of_another_model, "unet/diffusion_pytorch_model.safetensors", "unet"),
        (pickle_only, "unet/diffusion_pytorch_model.safetensors", "a pickle can run code"),
    ],
)
def test_damaged_folders_name_the_file(family, damage, name, says, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model(family), tmp_path / "damaged")
    damage(folder, name)
    with pytest.raises(UserError, match=says) as caught:
        tiny_models.load(folder, tmp_path / "cache")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("text_encoder/model.safetensors", "text_encoder/model.safetensors is missing"),
        ("text_encoder/config.json", "text_encoder/config.json is missing"),
        ("tokenizer", "tokenizer/vocab.json is missing"),
        ("tokenizer/tokenizer.json", "tokenizer/vocab.json is missing"),
    ],
)
def test_missing_words_name_the_file(name, says, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("sd-epsilon"), tmp_path / "damaged")
    shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    prior = tiny_models.load(folder, tmp_path / "cache")
    with pytest.raises(UserError, match=says):
        prior.encode_prompts(["a chair"])


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"])
def test_damaged_settings_name_the_file_and_the_remedy(name, tiny_model, tmp_path):
    """The libraries say what is wrong in it, and not which file it is."""
    folder = shutil.copytree(tiny_model("sd-epsilon"), tmp_path / "damaged")
    cut(folder, name)
    prior = tiny_models.load(folder, tmp_path / "cache")
    with pytest.raises(UserError, match=f"prior .*: {folder}/{name} is no JSON: .*; build it again"):
        prior.encode_prompts(["a chair"])


def test_a_tokenizer_that_does_not_say_its_length_reads_77(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("sd-epsilon"), tmp_path / "silent")
    (folder / "tokenizer" / "tokenizer_config.json").unlink()
    assert tiny_models.load(folder, tmp_path / "cache").encode_prompts(["a chair"]).tokens.shape[1] == 77
