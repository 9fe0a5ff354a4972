"""The records that pass between the pipeline and a prior, and finding a prior by its name."""

from dataclasses import replace

import pytest
import torch

from nerf_bridge.errors import UserError
from nerf_bridge.guidance.words import mix_rows
from nerf_bridge.prior import check_prior_name, load_prior
from nerf_bridge.prior.protocol import PromptEmbeddings, ViewCondition
from nerf_bridge.scene.cameras import orbit_cameras


def embeddings(n, length, first=0.0):
    tokens = first + torch.arange(n * length * 2, dtype=torch.float32).view(n, length, 2)
    return PromptEmbeddings(tokens, torch.ones(n, length, dtype=torch.bool))


def test_select_takes_rows_in_order_and_again():
    chosen = embeddings(3, 2).select([2, 0, 2])
    assert chosen.tokens[:, 0, 0].tolist() == [8, 0, 8]
    assert len(chosen) == 3


def test_repeat_gives_the_list_again():
    assert embeddings(2, 1).repeat(2).tokens[:, 0, 0].tolist() == [0, 2, 0, 2]


def test_cat_pads_the_shorter_with_masked_zeros():
    joined = PromptEmbeddings.cat([embeddings(1, 3), embeddings(2, 1, first=50.0)])
    assert joined.tokens.shape == (3, 3, 2)
    assert joined.mask.tolist() == [[True, True, True], [True, False, False], [True, False, False]]
    assert joined.tokens[1, 0].tolist() == [50, 51]
    assert not joined.tokens[1:, 1:].any()


def pooled(n, length, first=0.0):
    vectors = first + torch.arange(n * 3, dtype=torch.float32).view(n, 3)
    return replace(embeddings(n, length, first), pooled=vectors)


def test_pooled_vectors_go_with_their_rows():
    assert pooled(3, 2).select([2, 0]).pooled[:, 0].tolist() == [6, 0]
    assert pooled(2, 1).repeat(2).pooled[:, 0].tolist() == [0, 3, 0, 3]
    assert PromptEmbeddings.cat([pooled(1, 3), pooled(2, 1, first=50.0)]).pooled[:, 0].tolist() == [0, 50, 53]
    assert embeddings(2, 1).select([0]).pooled is None and embeddings(2, 1).repeat(2).pooled is None


def test_pooled_vectors_are_mixed_as_the_tokens_are():
    mixed = mix_rows(pooled(2, 2), torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    assert mixed.pooled[:, 0].tolist() == [2.25, 0.0]
    assert mixed.tokens[:, 0, 0].tolist() == [3.0, 0.0]


def view_condition(n):
    angles = torch.arange(n, dtype=torch.float32)
    return ViewCondition(orbit_cameras(angles, 0 * angles, angles + 2, 0 * angles + 0.7), torch.rand(n, 3))


def test_views_repeat_as_prompts_do():
    condition = view_condition(3)
    twice = condition.repeat(2)
    assert twice.cameras.azimuth_rad.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(twice.background, condition.background.repeat(2, 1))
    assert twice.camera_known is None


def test_hidden_cameras_stay_hidden():
    once = view_condition(3).hiding(torch.tensor([True, False, False]))
    assert once.camera_known.tolist() == [False, True, True]
    assert once.hiding(torch.tensor([False, False, True])).camera_known.tolist() == [False, True, False]
    assert once.repeat(2).camera_known.tolist() == [False, True, True] * 2


@pytest.mark.parametrize(
    ("name", "hint"),
    [("embeded", "did you mean 'embedded'?"), ("Embedded", "did you mean 'embedded'?"), ("dall-e", "known: embedded")],
)
def test_unknown_prior_is_refused_with_what_is_known(name, hint):
    for refuse in (check_prior_name, load_prior):
        with pytest.raises(UserError) as error:
            refuse(name)
        assert name in str(error.value) and hint in str(error.value)
        assert "\n" not in str(error.value)


def test_no_hint_without_a_near_name():
    with pytest.raises(UserError) as error:
        check_prior_name("stable-diffusion")
    assert "did you mean" not in str(error.value)
