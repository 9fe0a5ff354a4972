"""What the pipeline asks of a diffusion prior, and the records that pass between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from nerf_bridge.scene.cameras import Cameras

if TYPE_CHECKING:
    from nerf_bridge.memory.ladder import Rung


@dataclass(frozen=True)
class PromptEmbeddings:
    """Encoded prompts, one row a prompt."""

    tokens: Tensor  # [n, length, dim]
    mask: Tensor  # [n, length] bool, True where a token is
    pooled: Tensor | None = None  # [n, width]: each prompt as one vector, where the model wants that too

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def select(self, rows: Sequence[int] | slice | Tensor) -> PromptEmbeddings:
        """The rows `rows` ([m] integers, repetitions allowed), in that order; a slice never makes the host wait."""
        if not isinstance(rows, slice):
            rows = torch.as_tensor(rows, dtype=torch.long, device=self.tokens.device)
        pooled = None if self.pooled is None else self.pooled[rows]
        return PromptEmbeddings(self.tokens[rows], self.mask[rows], pooled)

    def row(self, i: int) -> PromptEmbeddings:
        """Row `i` alone; as `select` would, without making the host wait for the device."""
        return self.select(slice(i, i + 1))

    def to(self, device: torch.device) -> PromptEmbeddings:
        """The same rows on `device`."""
        pooled = None if self.pooled is None else self.pooled.to(device)
        return PromptEmbeddings(self.tokens.to(device), self.mask.to(device), pooled)

    def repeat(self, times: int) -> PromptEmbeddings:
        """The whole list `times` times over: [a, b] repeated twice is [a, b, a, b]."""
        pooled = None if self.pooled is None else self.pooled.repeat(times, 1)
        return PromptEmbeddings(self.tokens.repeat(times, 1, 1), self.mask.repeat(times, 1), pooled)

    @staticmethod
    def cat(parts: Sequence[PromptEmbeddings]) -> PromptEmbeddings:
        """All rows of `parts` in one list; shorter ones are padded with masked zeros to the longest."""
        length = max(part.tokens.shape[1] for part in parts)
        padded = [part._padded(length) for part in parts]
        pooled = [part.pooled for part in parts if part.pooled is not None]
        assert len(pooled) in (0, len(parts)), "some prompts have a pooled vector and some have none"
        return PromptEmbeddings(
            torch.cat([part.tokens for part in padded]),
            torch.cat([part.mask for part in padded]),
            torch.cat(pooled) if pooled else None,
        )

    def _padded(self, length: int) -> PromptEmbeddings:
        missing = length - self.tokens.shape[1]
        tokens = torch.nn.functional.pad(self.tokens, (0, 0, 0, missing))
        return PromptEmbeddings(tokens, torch.nn.functional.pad(self.mask, (0, missing)), self.pooled)


@dataclass(frozen=True)
class ViewCondition:
    """Where each image was taken from, what is behind its object, and how many in a row show the same object."""

    cameras: Cameras  # b cameras
    background: Tensor  # [b, 3] in 0..1
    camera_known: Tensor | None = None  # [b] bool, False hides the camera of that image; none: all are known
    together: int = 1  # views in a row of one object by one prompt, around it in order; b is a multiple of it

    def repeat(self, times: int) -> ViewCondition:
        """The whole list `times` times over, as PromptEmbeddings.repeat does."""
        known = None if self.camera_known is None else self.camera_known.repeat(times)
        return ViewCondition(self.cameras.repeat(times), self.background.repeat(times, 1), known, self.together)

    def select(self, rows: Sequence[int] | slice) -> ViewCondition:
        """The views `rows`, in that order, each for itself."""
        known = None if self.camera_known is None else self.camera_known[rows]
        return ViewCondition(self.cameras[rows], self.background[rows], known)

    def hiding(self, hidden: Tensor) -> ViewCondition:
        """The same views without the cameras of the images where `hidden` ([b] bool) is True."""
        known = ~hidden if self.camera_known is None else self.camera_known & ~hidden
        return replace(self, camera_known=known)


@dataclass(frozen=True)
class PriorInfo:
    """Which model it is, for the report and for repeating a run."""

    name: str
    licence: str
    source: str  # where the weights come from
    sha256: dict[str, str]  # file name to hexadecimal digest


@runtime_checkable
class SparingPrior(Protocol):
    """A prior that can do with less memory."""

    def place(self, rung: Rung) -> None:
        """Put the networks where they compute, as sparing as `rung` of the memory ladder says; may be called again."""
        ...


@runtime_checkable
class DesigningPrior(Protocol):
    """A prior whose prompts may name one of a noun's designs (prior/designs.py); `designs`: how many."""

    designs: int


@runtime_checkable
class JoiningPrior(Protocol):
    """A prior that denoises `together` views of an object together where a step has so many, or a multiple of it."""

    together: int


def kept_together(prior: Prior, n_views: int) -> int:
    """How many of the `n_views` of a step `prior` must see in one call, so that its answer stays the same."""
    together = prior.together if isinstance(prior, JoiningPrior) else 1
    return n_views if together > 1 and n_views % together == 0 else prior.view_group


class Prior(Protocol):
    """A diffusion model that says what an image of a prompt should look like.

    Every prior answers in noise (epsilon), whatever it was trained to predict, so that each guidance method is
    written once. `x` is what the model noises: pixels, or latents of a latent model. Noised images are
    alpha_t * x + sigma_t * noise.
    """

    name: str
    image_size: int  # pixels along a side of the images that encode_image takes
    knows_cameras: bool  # whether predict_noise uses its condition
    x_limit: float | None  # clean x lies within -x_limit and x_limit; None: it has no bounds, as latents
    view_group: int  # views that it denoises together, evenly spaced around the object at one time; mostly 1

    def info(self) -> PriorInfo:
        """Name, licence, origin and hashes of the model."""
        ...

    def encode_prompts(self, prompts: list[str]) -> PromptEmbeddings:
        """Embeddings of `prompts`, one row each; the empty string is the null prompt."""
        ...

    def encode_image(self, images: Tensor) -> Tensor:
        """x [b, c, h', w'] of `images` [b, 3, h, w] in 0..1; differentiable."""
        ...

    def decode_image(self, x: Tensor) -> Tensor:
        """Images [b, 3, h, w] in 0..1 of `x` [b, c, h', w']."""
        ...

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise level, [b] each, at times `t` [b] in (0, 1); noise grows with t."""
        ...

    def predict_noise(
        self, noised: Tensor, t: Tensor, embeddings: PromptEmbeddings, condition: ViewCondition | None
    ) -> Tensor:
        """The noise in `noised` [b, c, h', w'] at `t` [b], for b prompts and b views; no gradient.

        Without a condition the view is unknown; a prior that knows no cameras ignores it.
        """
        ...
