"""How a family noises, and how its network's answer becomes noise (epsilon)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from nerf_bridge.errors import UserError

Prediction = Literal["epsilon", "v_prediction"]


class NoiseProcess(Protocol):
    """Levels of noise over the time t in (0, 1), and what the network's answer means."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise level, [b] each, at times `t` [b]."""
        ...

    def network_time(self, t: Tensor) -> Tensor:
        """The time [b] as the network wants to be told it."""
        ...

    def to_noise(self, answer: Tensor, noised: Tensor, t: Tensor) -> Tensor:
        """Epsilon [b, c, h, w] from the network's `answer` to `noised` at `t` [b]."""
        ...


@dataclass(frozen=True)
class VariancePreserving:
    """Discrete steps with alpha^2 + sigma^2 = 1 (Ho et al. 2020); time t is step floor(t * n).

    Attributes:
        alphas, sigmas: levels at each of the n training steps, [n].
        predicts: epsilon, or v = alpha * eps - sigma * x (Salimans and Ho 2022).
    """

    alphas: Tensor
    sigmas: Tensor
    predicts: Prediction

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Levels of the step that `t` falls in."""
        step = self.network_time(t)
        return self.alphas[step].to(t.dtype), self.sigmas[step].to(t.dtype)

    def network_time(self, t: Tensor) -> Tensor:
        """The training step, 0 ... n - 1."""
        n = self.alphas.shape[0]
        return (t * n).long().clamp(0, n - 1)

    def to_noise(self, answer: Tensor, noised: Tensor, t: Tensor) -> Tensor:
        """The answer itself, or eps = alpha * v + sigma * x_t."""
        if self.predicts == "epsilon":
            return answer
        alpha, sigma = (level.to(answer.dtype).view(-1, 1, 1, 1) for level in self.alpha_sigma(t))
        return alpha * answer + sigma * noised


@dataclass(frozen=True)
class RectifiedFlow:
    """Straight paths x_t = (1 - t) * x + t * eps whose network answers the velocity u = eps - x (Liu et al. 2022).

    Attributes:
        time_scale: what the network calls t = 1.
    """

    time_scale: float

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """1 - t and t."""
        return 1 - t, t

    def network_time(self, t: Tensor) -> Tensor:
        """t in the network's unit."""
        return t * self.time_scale

    def to_noise(self, answer: Tensor, noised: Tensor, t: Tensor) -> Tensor:
        """eps = x_t + (1 - t) * u."""
        return noised + (1 - t).to(answer.dtype).view(-1, 1, 1, 1) * answer


def read_process(scheduler: dict[str, Any], device: torch.device) -> VariancePreserving:
    """The process that the training schedule of a scheduler_config.json describes.

    Raises:
        UserError: it predicts neither epsilon nor v, or has a schedule that is not known.
    """
    predicts = scheduler.get("prediction_type", "epsilon")
    if predicts not in ("epsilon", "v_prediction"):
        raise UserError(f"scheduler_config.json: prediction_type is {predicts!r}, expected epsilon or v_prediction")
    kept = 1 - _betas(scheduler)
    alpha_bar = kept.cumprod(0)
    if scheduler.get("rescale_betas_zero_snr", False):
        alpha_bar = _zero_terminal_snr(alpha_bar)
    return VariancePreserving(alpha_bar.sqrt().to(device), (1 - alpha_bar).sqrt().to(device), predicts)


def _betas(scheduler: dict[str, Any]) -> Tensor:
    """beta [n] in float64, with diffusers' names and defaults."""
    n, name = int(scheduler.get("num_train_timesteps", 1000)), scheduler.get("beta_schedule", "linear")
    if scheduler.get("trained_betas") is not None:
        return torch.tensor(scheduler["trained_betas"], dtype=torch.float64)
    first, last = scheduler.get("beta_start", 0.0001), scheduler.get("beta_end", 0.02)
    if name == "linear":
        return torch.linspace(first, last, n, dtype=torch.float64)
    if name == "scaled_linear":
        return torch.linspace(first**0.5, last**0.5, n, dtype=torch.float64) ** 2
    if name == "squaredcos_cap_v2":  # Nichol and Dhariwal 2021, equation 17
        level = torch.cos((torch.arange(n + 1, dtype=torch.float64) / n + 0.008) / 1.008 * torch.pi / 2) ** 2
        return (1 - level[1:] / level[:-1]).clamp(max=0.999)
    known = "linear, scaled_linear or squaredcos_cap_v2"
    raise UserError(f"scheduler_config.json: beta_schedule is {name!r}, expected {known}")


def _zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """The schedule stretched so that its last step is pure noise (Lin et al. 2023, algorithm 1)."""
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
