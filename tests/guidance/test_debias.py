"""Prompt debiasing against the formula written out, and with a tiny BERT on disk."""

import shutil

import pytest
import torch
from gaussian_mixture import Component, GaussianMixturePrior
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from nerf_bridge.config import GuidanceConfig
from nerf_bridge.errors import UserError
from nerf_bridge.guidance import encode_words
from nerf_bridge.guidance.debias import debiased_prompts, prompts_by_view, read_views
from nerf_bridge.prior.catalogue.find import find_language_model

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] this image is depicting a view of front side back overhead smiling dog red old"
PROMPT = "a smiling red dog"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A tiny BERT with random weights that makes much of every word."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS.split()))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        model = BertForMaskedLM(BertConfig(vocab_size=len(WORDS.split()), initializer_range=0.5, **sizes))
    model.save_pretrained(folder)
    return folder


def by_hand(folder, text):
    """P(view | text): softmax over the vocabulary at the mask, then the four views' shares."""
    tokenizer, model = BertTokenizer.from_pretrained(folder), BertForMaskedLM.from_pretrained(folder).eval()
    said = tokenizer(f"This image is depicting a [MASK] view of {text}", return_tensors="pt")
    place = said.input_ids[0].tolist().index(tokenizer.mask_token_id)
    every = model(**said).logits[0, place].double().softmax(-1)
    views = [every[WORDS.split().index(view)].item() for view in ("front", "side", "back", "overhead")]
    return [share / sum(views) for share in views]


def test_probabilities_are_the_language_models(bert):
    texts = [PROMPT, "a dog", "old"]
    actual = read_views(find_language_model(str(bert), True))(texts)
    assert torch.allclose(actual.double(), torch.tensor([by_hand(bert, text) for text in texts]).double(), atol=1e-6)
    assert torch.allclose(actual.sum(1), torch.ones(3))


def test_words_that_make_a_view_less_likely_are_left_out_of_it(bert):
    words = PROMPT.split()
    full = by_hand(bert, PROMPT)
    without = [by_hand(bert, " ".join(words[:i] + words[i + 1 :])) for i in range(len(words))]
    expected = []
    for view in range(4):
        kept = [word for i, word in enumerate(words) if full[view] / without[i][view] >= 0.95]
        expected.append(" ".join(kept) or PROMPT)
    assert len(set(expected)) > 1
    assert debiased_prompts(PROMPT, read_views(find_language_model(str(bert), True)), words) == tuple(expected)
    assert prompts_by_view(PROMPT, GuidanceConfig(debias=str(bert)), True) == tuple(expected)


def test_only_the_named_words_may_go():
    def probabilities(prompts):
        return torch.tensor([[0.1, 0.3, 0.3, 0.3]] + [[0.4, 0.2, 0.2, 0.2]] * (len(prompts) - 1))

    assert debiased_prompts(PROMPT, probabilities, ["red"]) == ("a smiling dog", PROMPT, PROMPT, PROMPT)
    assert debiased_prompts(PROMPT, probabilities, PROMPT.split()) == (PROMPT,) * 4  # nothing would be left in front
    assert debiased_prompts("dog", probabilities, ["dog"]) == ("dog",) * 4


def test_each_view_gets_its_own_prompt():
    asked = []

    class Listening(GaussianMixturePrior):
        def encode_prompts(self, prompts):
            asked.extend(prompts)
            return super().encode_prompts(prompts)

    prior = Listening([Component("dog", (0, 0), 1)], knows_cameras=False)
    own = ("a smiling dog", "a dog", "dog", "a red dog")
    encode_words(prior, PROMPT, GuidanceConfig(target_words="sharp"), view_prompts=own)
    assert asked[:5] == [
        "a smiling dog, front view",
        "a dog, side view",
        "dog, back view",
        "a red dog, overhead view",
        "a smiling dog, front view, sharp",
    ]


def test_off_by_default():
    assert prompts_by_view(PROMPT, GuidanceConfig(), False) is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"debias": "/no/such/folder"}, "no language model at '/no/such/folder'; expected bert, or a folder with one"),
        ({"debias": "bert", "debias_words": "dog, green"}, "green not among the words of the prompt"),
    ],
)
def test_what_is_wrong_is_told(settings, says):
    with pytest.raises(UserError, match=says):
        prompts_by_view(PROMPT, GuidanceConfig(**settings), True)


def test_a_model_without_the_views_words_is_refused(bert, tmp_path):
    for path in bert.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes().replace(b"overhead", b"overheat"))
    with pytest.raises(UserError, match="does not know the words front, side, back, overhead"):
        read_views(find_language_model(str(tmp_path), True))


def test_a_model_that_is_not_whole_is_told(bert, tmp_path):
    for path in bert.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=f"guidance.debias: .* cannot load {tmp_path}: .*; copy the folder again"):
        read_views(find_language_model(str(tmp_path), True))
    (tmp_path / "config.json").write_text('{"hidden_size": ')
    with pytest.raises(UserError, match=f"guidance.debias: .* {tmp_path}/config.json is no JSON: .*; copy the folder"):
        read_views(find_language_model(str(tmp_path), True))


def test_files_beside_the_recorded_ones_are_not_read(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "bert")
    found = find_language_model(str(folder), True)
    expected = read_views(found)([PROMPT])
    (folder / "added_tokens.json").write_text('{"dog": 3}')
    (folder / "adapter_config.json").write_text("{}")
    assert torch.equal(read_views(found)([PROMPT]), expected)


def test_debiasing_without_views_in_words_is_refused():
    with pytest.raises(UserError, match="guidance.debias works on the views' words"):
        encode_words(GaussianMixturePrior([Component("dog", (0, 0), 1)]), "dog", GuidanceConfig(debias="bert"))
