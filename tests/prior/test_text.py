"""The text encoder, and its pruned form."""

from pathlib import Path

import pytest
import torch

from nerf_bridge.errors import UserError
from nerf_bridge.prior import text
from nerf_bridge.prior.data.captions import SOURCE_WORDS
from nerf_bridge.prior.data.pack import pack_library
from nerf_bridge.prior.data.primitives import build_primitives
from nerf_bridge.prior.text import TextEncoder, prune_text_encoder, text_encoder_folder

TEXTS = ["a green armchair", "", "a red sofa, oversaturated, smooth"]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(text_encoder_folder(), 16)


def test_the_empty_prompt_has_no_words(encoder: TextEncoder) -> None:
    hidden, mask = encoder(TEXTS)
    assert hidden.shape == (3, 16, 384)
    assert not mask[1].any()
    assert int(mask[0].sum()) == 5  # [CLS] a green armchair [SEP]


def test_meaning_shows_in_the_vectors(encoder: TextEncoder) -> None:
    hidden, mask = encoder(["a red sofa", "a red couch", "a steam engine"])
    pooled = torch.nn.functional.normalize((hidden * mask[..., None]).sum(1), dim=-1)
    assert float(pooled[0] @ pooled[1]) > float(pooled[0] @ pooled[2]) + 0.2


def test_the_pruned_encoder_agrees(encoder: TextEncoder, tmp_path: Path) -> None:
    prune_text_encoder(TEXTS, text_encoder_folder(), tmp_path)
    hidden, mask = encoder(TEXTS)
    pruned_hidden, pruned_mask = TextEncoder(tmp_path, 16)(TEXTS)
    assert torch.equal(mask, pruned_mask)
    assert float((hidden - pruned_hidden)[mask].abs().max()) < 0.01


def test_the_command_keeps_the_words_of_captions_and_prompts(tmp_path: Path) -> None:
    pack_library(build_primitives(0, n_single=20, n_pairs=2), tmp_path / "library.npz")
    (tmp_path / "prompts.txt").write_text("a purple zeppelin\n")
    words = ["--library", str(tmp_path / "library.npz"), "--prompts", str(tmp_path / "prompts.txt")]
    text.main([*words, "--out", str(tmp_path / "text")])
    kept = ["a red cube", f"a blue ball, {SOURCE_WORDS}", "a purple zeppelin"]
    (whole, mask), (pruned, _) = (
        TextEncoder(folder, 40)(kept) for folder in (text_encoder_folder(), tmp_path / "text")
    )
    assert float((whole - pruned)[mask].abs().max()) < 0.01
    assert (tmp_path / "text" / "model.safetensors").stat().st_size < 30e6


def test_a_missing_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "TEXT_PACKAGE", "no_such_text_package")
    with pytest.raises(UserError, match="pip install"):
        text_encoder_folder()


def test_what_is_too_long_is_said(encoder: TextEncoder, caplog: pytest.LogCaptureFixture) -> None:
    encoder(["a short prompt"])
    assert not caplog.records
    encoder(["a red sofa with a very long tail of words that no encoder of sixteen tokens could ever read to its end"])
    assert "at most 16 tokens" in caplog.text
    caplog.clear()
    encoder(["a very " * 12 + "old chair", "a sofa", "a very " * 12 + "old table"])
    (record,) = caplog.records
    assert "this (and of 1 more) is left out: a very" in record.getMessage()
