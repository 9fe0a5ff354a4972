"""The constants of a group norm."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Norm:
    """A frozen group norm.

    Attributes:
        gain, offset: [c], float32 (float64 where the network is).
        groups: into which the channels are parted.
        eps: added to the variance.
        amplitude: the result is multiplied by it.
    """

    gain: Tensor
    offset: Tensor
    groups: int
    eps: float
    amplitude: float
