"""Our BERT beside transformers' on the same weights."""

import json
from dataclasses import fields

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from nerf_bridge.prior.bert import Bert, BertSizes
from nerf_bridge.prior.text import TextEncoder, text_encoder_folder

TEXTS = ["a green armchair", "", "Ünïcode: a 3-legged (blue) stool, oversaturated; smooth!", "a " * 200]


def drawn(sizes: BertSizes, n: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and which of them are attended: prefixes of different lengths."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(sizes.vocab_size, (n, length), generator=generator)
    lengths = torch.randint(1, length + 1, (n, 1), generator=generator)
    return ids, torch.arange(length) < lengths


def test_small_networks_agree_with_transformers() -> None:
    config = BertConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=20,
    )
    torch.manual_seed(0)
    theirs = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3)
    sizes = BertSizes(**{field.name: getattr(config, field.name) for field in fields(BertSizes)})
    ours = Bert(sizes)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    ids, attended = drawn(sizes, 5, 12)
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=attended.long()).last_hidden_state
        assert float((ours(ids, attended) - expected).abs().max()) < 1e-5


@pytest.mark.slow
def test_the_shipped_encoder_is_transformers_to_rounding() -> None:
    folder = text_encoder_folder()
    encoder = TextEncoder(folder, 40)
    config = BertConfig(**json.loads((folder / "config.json").read_text()))
    theirs = BertModel(config, add_pooling_layer=False).eval()
    stored = load_file(folder / "model.safetensors")
    theirs.load_state_dict({name: stored[name] for name in theirs.state_dict() if name in stored}, strict=False)
    encoded = encoder.tokenizer.encode_batch(TEXTS)
    ids = torch.tensor([item.ids for item in encoded])
    attended = torch.tensor([item.attention_mask for item in encoded])
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=attended).last_hidden_state
        exact = theirs.double()(input_ids=ids, attention_mask=attended).last_hidden_state
    hidden, mask = encoder(TEXTS)
    worded = [0, 2, 3]  # in float32 the vectors of the empty text are good to 1e-4 in either; nothing reads them
    assert float((hidden - expected)[worded].abs().max()) < 1e-5
    assert float((encoder.double()(TEXTS)[0] - exact).abs().max()) < 1e-9
    assert torch.equal(mask[worded], attended[worded].bool()) and not mask[1].any()
