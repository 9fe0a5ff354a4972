"""The prompts of a run, encoded once, and the embeddings of each view taken from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nerf_bridge.config import GuidanceConfig
from nerf_bridge.errors import UserError
from nerf_bridge.prior.protocol import Prior, PromptEmbeddings
from nerf_bridge.prompts import VIEWS, compose_words, use_view_words, view_weights
from nerf_bridge.scene.cameras import Cameras

Role = Literal["text", "null", "negative", "target", "source", "front", "side"]


@dataclass(frozen=True)
class EncodedWords:
    """Embeddings of every prompt that a guidance method may ask for.

    `text`, `target` and `source` have one row, or one for each of prompts.VIEWS; `null` and `negative` have one. The
    roles `front` and `side` are the prompt in the words of these views, for Perp-Neg.
    """

    text: PromptEmbeddings
    null: PromptEmbeddings
    negative: PromptEmbeddings
    target: PromptEmbeddings
    source: PromptEmbeddings

    def by_role(self, role: Role) -> PromptEmbeddings:
        """The embeddings that play `role`."""
        if role in ("front", "side"):
            return self.text.row(VIEWS.index(f"{role} view"))
        return {
            "text": self.text,
            "null": self.null,
            "negative": self.negative,
            "target": self.target,
            "source": self.source,
        }[role]

    @property
    def by_view(self) -> bool:
        """Whether the prompts are worded by view."""
        return len(self.text) > 1


@torch.no_grad()
def encode_words(
    prior: Prior,
    prompt: str,
    settings: GuidanceConfig,
    views_known: bool = True,
    view_prompts: Sequence[str] | None = None,
) -> EncodedWords:
    """Encode the prompt, the empty prompt, the negative, the target and the source prompt, in one call of the prior.

    Args:
        settings: gives the words, and whether the view is said in words.
        views_known: whether each image will come with its camera (False for a picture without one).
        view_prompts: the prompt to use for each of prompts.VIEWS (see debias.prompts_by_view); None: `prompt` for all.

    Raises:
        ValueError: the prompt is blank or too long.
        UserError: Perp-Neg or debiasing is asked for and the view is not said in words.
    """
    by_view = views_known and use_view_words(settings.view_words, prior.knows_cameras)
    for name, wanted in (("perp_neg", settings.perp_neg), ("debias", settings.debias is not None)):
        if wanted and not by_view:
            raise UserError(
                f"guidance.{name} works on the views' words, and here the view is not said in words; "
                f"set guidance.view_words to on, or leave {name} out"
            )
    words = compose_words(prompt, settings, by_view, view_prompts)
    encoded = prior.encode_prompts([*words.text, *words.target, *words.source, words.negative, words.null])
    n = len(words.text)
    return EncodedWords(
        text=encoded.select(range(n)),
        target=encoded.select(range(n, 2 * n)),
        source=encoded.select(range(2 * n, 3 * n)),
        negative=encoded.select([3 * n]),
        null=encoded.select([3 * n + 1]),
    )


class ViewWords:
    """The words of a run as the images of a step have them: a row for each image.

    What was asked for is kept, so that it can be made before it is needed.
    """

    def __init__(self, words: EncodedWords, cameras: Cameras | None, n: int):
        """For `n` images from `cameras`; None: unknown, which words by view cannot do with."""
        self.words = words
        self.cameras = cameras
        self.n = n
        self._made: dict[tuple[Role, ...], PromptEmbeddings] = {}
        self._asked: set[tuple[Role, ...]] = set()

    def by_roles(self, roles: tuple[Role, ...]) -> PromptEmbeddings:
        """`n` rows for each of `roles`, role after role."""
        self._asked.add(roles)
        self._make(roles)
        return self._made[roles]

    def make_as(self, other: ViewWords) -> None:
        """Make what has been asked of `other`."""
        for roles in other._asked:
            self._make(roles)

    def _make(self, roles: tuple[Role, ...]) -> None:
        if roles not in self._made:
            rows = [embeddings_for_views(self.words.by_role(role), self.cameras, self.n) for role in roles]
            self._made[roles] = PromptEmbeddings.cat(rows)


def embeddings_for_views(encoded: PromptEmbeddings, cameras: Cameras | None, n: int) -> PromptEmbeddings:
    """One row for each of `n` images: the only row of `encoded`, or its four view wordings mixed by `view_weights`."""
    if len(encoded) == 1:
        return encoded.repeat(n)
    assert cameras is not None, "prompts worded by view need the cameras"
    weights = view_weights(cameras.azimuth_rad, cameras.elevation_rad)
    return mix_rows(encoded, weights.to(encoded.tokens))


def mix_rows(encoded: PromptEmbeddings, weights: Tensor) -> PromptEmbeddings:
    """Rows of `encoded` (m prompts) mixed with `weights` [n, m]: n rows; a token counts where a mixed one has it."""
    tokens = encoded.tokens * encoded.mask[..., None]
    mixed = torch.einsum("nm,mld->nld", weights, tokens)
    used = torch.einsum("nm,ml->nl", weights, encoded.mask.to(weights)) > 0
    pooled = None if encoded.pooled is None else weights.to(encoded.pooled) @ encoded.pooled
    return PromptEmbeddings(mixed, used, pooled)
