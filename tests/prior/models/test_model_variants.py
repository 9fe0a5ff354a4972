"""Folders that differ from what a family usually looks like: parts missing, other settings, older names."""

import json
import shutil

import diffusers
import pytest
import torch
from prior.models import tiny_models
from safetensors.torch import load_file, save_file

from nerf_bridge.errors import UserError


def test_sd3_without_t5_gets_zeros_for_it(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("sd3"), tmp_path / "no-t5")
    shutil.rmtree(folder / "text_encoder_3")
    index = json.loads((folder / "model_index.json").read_text()) | {"text_encoder_3": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    encoded = tiny_models.load(folder, tmp_path / "cache").encode_prompts(["a chair"])
    assert encoded.tokens.shape[1] == 77 + 256
    assert not encoded.tokens[:, 77:].any() and encoded.tokens[:, :77].any()


def test_flux_dev_is_asked_for_its_plain_prediction(tiny_model, tmp_path):
    """Guidance 1 in the network, more words than schnell reads, and the scale left to us."""
    folder = shutil.copytree(tiny_model("flux"), tmp_path / "dev")
    settings = json.loads((folder / "transformer" / "config.json").read_text()) | {"guidance_embeds": True}
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel.from_config(settings)
    transformer.save_pretrained(folder / "transformer")
    prior = tiny_models.load(folder, tmp_path / "cache", torch.float64, 16)
    pipeline = diffusers.FluxPipeline.from_pretrained(folder, dtype=torch.float64)
    tokens, pooled, _ = pipeline.encode_prompt("a chair", None, device="cpu", max_sequence_length=512)
    words = prior.encode_prompts(["a chair"])
    assert words.tokens.shape[1] == 512 and torch.allclose(words.tokens, tokens, atol=1e-9)
    x_t, t = torch.randn(1, 4, 8, 8, dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    answers = [
        pipeline.transformer(
            hidden_states=pipeline._pack_latents(x_t, 1, 4, 8, 8),
            timestep=t,
            guidance=torch.tensor([scale], dtype=torch.float64),
            pooled_projections=pooled,
            encoder_hidden_states=tokens,
            txt_ids=torch.zeros(512, 3, dtype=torch.float64),
            img_ids=pipeline._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float64),
        ).sample
        for scale in (1.0, 3.5)
    ]
    plain, guided = (x_t + 0.6 * pipeline._unpack_latents(answer, 16, 16, 2) for answer in answers)
    actual = prior.predict_noise(x_t, t, words, None)
    assert torch.allclose(actual, plain, atol=1e-5) and not torch.allclose(actual, guided, atol=1e-4)


def test_flux_dev_needs_an_explicit_choice(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("flux"), tmp_path / "dev")
    config = json.loads((folder / "transformer" / "config.json").read_text()) | {"guidance_embeds": True}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="its licence forbids commercial use; to use it so, say --model.non_commercial"):
        tiny_models.load(folder, tmp_path / "cache", non_commercial=False)


def test_models_for_inpainting_are_refused(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("sd-epsilon"), tmp_path / "inpainting")
    settings = json.loads((folder / "unet" / "config.json").read_text()) | {"in_channels": 9}
    diffusers.UNet2DConditionModel.from_config(settings).save_pretrained(folder / "unet")
    with pytest.raises(UserError, match="takes 9 channels where the autoencoder makes 4: a model for inpainting"):
        tiny_models.load(folder, tmp_path / "cache")


def test_other_pipelines_are_refused(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("sd-epsilon"), tmp_path / "other")
    (folder / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(UserError, match="no prior is made from a KandinskyPipeline .known: StableDiffusionPipeline"):
        tiny_models.load(folder, tmp_path / "cache")


def test_weights_in_half_precision_alone_are_taken(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("sd-epsilon"), tmp_path / "half")
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        (folder / part / f"{stem}.safetensors").rename(folder / part / f"{stem}.fp16.safetensors")
    prior = tiny_models.load(folder, tmp_path / "cache")
    whole = tiny_models.load(tiny_model("sd-epsilon"), tmp_path / "cache")
    x = torch.rand(1, 4, 8, 8)
    words = prior.encode_prompts(["a chair"])
    t = torch.tensor([0.5])
    assert torch.equal(prior.predict_noise(x, t, words, None), whole.predict_noise(x, t, words, None))


def test_autoencoders_with_the_old_names_load_whole(tiny_model, tmp_path):
    """The published ones of Stable Diffusion 1.5 and 2.1 name their attention as diffusers did before 2023."""
    folder = shutil.copytree(tiny_model("sd-epsilon"), tmp_path / "old")
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, value in load_file(path).items():
        for new, old in names.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        state[name] = value
    assert any("proj_attn" in name for name in state)
    save_file(state, path)
    picture = torch.rand(1, 3, 16, 16)
    expected = tiny_models.load(tiny_model("sd-epsilon"), tmp_path / "cache").encode_image(picture)
    assert torch.equal(tiny_models.load(folder, tmp_path / "cache").encode_image(picture), expected)
