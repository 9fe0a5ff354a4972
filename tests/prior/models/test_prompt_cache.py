"""Prompts are encoded once, and the text encoders leave the memory afterwards."""

import gc
import json
import shutil
import weakref

import pytest
import torch
from diffusers import FluxTransformer2DModel
from prior.models import tiny_models

from nerf_bridge.prior.models import prompt_cache, text
from nerf_bridge.prior.models.folder import ModelFolder


@pytest.fixture
def load(tiny_model, tmp_path):
    def load_one(family="sdxl", **options):
        return tiny_models.load(tiny_model(family), tmp_path / "cache", **options)

    return load_one


def test_known_prompts_load_no_text_encoder(load):
    first, second = load(), load()
    rows = first.encode_prompts(["a chair", "", "a chair"])
    again = second.encode_prompts(["", "a chair"])
    assert (first.words.encodings, second.words.encodings) == (1, 0)
    assert torch.equal(rows.tokens[[1, 0]], again.tokens) and torch.equal(rows.pooled[[1, 0]], again.pooled)
    assert torch.equal(rows.tokens[0], rows.tokens[2])


def test_only_new_prompts_are_encoded(load, monkeypatch):
    prior = load("sd-epsilon")
    asked = []
    monkeypatch.setattr(
        prior.words, "encode", lambda models, new: asked.append(list(new)) or text.encode_sd(models, new)
    )
    prior.encode_prompts(["a", "b"])
    prior.encode_prompts(["b", "c"])
    assert asked == [["a", "b"], ["c"]]


@pytest.mark.parametrize(
    "options", [{"sha256": {"text_encoder/model.safetensors": "other"}}, {"dtype": torch.float64}, {"family": "sd-v"}]
)
def test_other_weights_or_precision_are_encoded_anew(load, options):
    load("sd-epsilon", sha256={"text_encoder/model.safetensors": "one"}).encode_prompts(["a chair"])
    options = {"family": "sd-epsilon", "sha256": {"text_encoder/model.safetensors": "one"}} | options
    if options["family"] == "sd-v":
        options["sha256"] = {"text_encoder/model.safetensors": "two"}
    prior = load(options.pop("family"), **options)
    prior.encode_prompts(["a chair"])
    assert prior.words.encodings == 1


def dev_of(schnell, folder):
    """A FLUX with the same text encoders whose network is distilled to a guidance scale, as dev's is."""
    shutil.copytree(schnell, folder)
    settings = json.loads((folder / "transformer" / "config.json").read_text()) | {"guidance_embeds": True}
    torch.manual_seed(0)
    FluxTransformer2DModel.from_config(settings).save_pretrained(folder / "transformer")
    return folder


def test_flux_dev_after_schnell_reads_as_many_words_as_ever(tiny_model, load, tmp_path):
    """Both have the same text encoders; which of them it is stands in the network's settings."""
    assert load("flux").encode_prompts(["a chair"]).tokens.shape[1] == 256
    dev = tiny_models.load(dev_of(tiny_model("flux"), tmp_path / "dev"), tmp_path / "cache")
    assert dev.encode_prompts(["a chair"]).tokens.shape[1] == 512
    assert load("flux").encode_prompts(["a chair"]).tokens.shape[1] == 256


def test_another_way_of_encoding_is_another_entry(load, monkeypatch):
    load().encode_prompts(["a chair"])
    monkeypatch.setattr(prompt_cache, "ENCODING", text.ENCODING + 1)
    later = load()
    later.encode_prompts(["a chair"])
    assert later.words.encodings == 1


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_file_that_is_read_to_encode_is_in_the_key(family, load, monkeypatch):
    prior = load(family)
    read = []
    file, recorded = ModelFolder.file, ModelFolder.recorded
    monkeypatch.setattr(ModelFolder, "file", lambda self, name: read.append(name) or file(self, name))
    monkeypatch.setattr(ModelFolder, "recorded", lambda self, part: read.append(part) or recorded(self, part))
    prior.encode_prompts(["a chair"])
    assert len(read) > 2 and all(name.startswith(text.READ_TO_ENCODE) for name in read), read


def test_a_damaged_entry_is_made_again(load, tmp_path, caplog):
    expected = load().encode_prompts(["a chair"])
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    prior = load()
    assert torch.equal(prior.encode_prompts(["a chair"]).tokens, expected.tokens)
    assert prior.words.encodings == 1 and "is damaged" in caplog.text
    assert load().encode_prompts(["a chair"]) and not list((tmp_path / "cache").glob("*.tmp*"))


def test_a_cache_that_cannot_be_written_costs_only_time(tiny_model, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file, and no folder")
    prior = tiny_models.load(tiny_model("sd-epsilon"), tmp_path / "cache")
    assert len(prior.encode_prompts(["a chair"])) == 1
    assert "cannot keep encoded prompts" in caplog.text


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux", "if"])
def test_text_encoders_are_freed(family, load, monkeypatch):
    held = []
    loaded = ModelFolder.load

    def watch(self, part, *arguments):
        model = loaded(self, part, *arguments)
        held.append(weakref.ref(model))
        return model

    prior = load(family)
    monkeypatch.setattr(ModelFolder, "load", watch)
    prior.encode_prompts(["a chair"])
    gc.collect()
    assert len(held) == {"sdxl": 2, "sd3": 3, "flux": 2, "if": 1}[family]
    assert all(reference() is None for reference in held)
