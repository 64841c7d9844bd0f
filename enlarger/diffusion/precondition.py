"""How a network's raw output becomes a denoised estimate: Karras et al. 2022, equation 7, for each way of training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scalings:
    """denoised = skip * x + output * network(input * x, time)."""

    skip: Tensor | float
    output: Tensor | float
    input: Tensor | float
    time: Tensor  # the noise level as the network takes it


class SigmaToTimestep(Protocol):
    """What knows the training time of a noise level: `NoiseSchedule`, or `TimestepMap` at certain noise levels."""

    def time(self, sigma: Tensor) -> Tensor: ...


Precondition = Callable[[Tensor], Scalings]  # from a scalar sigma


def epsilon(schedule: SigmaToTimestep) -> Precondition:
    """The network predicts the noise of a variance-preserving latent (SD1, SD2-base, SDXL)."""
    return lambda sigma: Scalings(1.0, -sigma, _input_scale(sigma), schedule.time(sigma))


def velocity(schedule: SigmaToTimestep) -> Precondition:
    """The network predicts v = sqrt(a) noise - sqrt(1 - a) clean (SD2 768, x4; Salimans and Ho 2022)."""
    return lambda sigma: Scalings(
        1 / (sigma**2 + 1), -sigma * _input_scale(sigma), _input_scale(sigma), schedule.time(sigma)
    )


def sample(schedule: SigmaToTimestep) -> Precondition:
    """The network predicts the clean latent itself."""
    return lambda sigma: Scalings(0.0, 1.0, _input_scale(sigma), schedule.time(sigma))


def karras(sigma_data: float = 1.0) -> Precondition:
    """Karras et al. 2022, table 1, last column, for data of that deviation; the network takes log(sigma) / 4."""

    def scalings(sigma: Tensor) -> Scalings:
        total_std = (sigma**2 + sigma_data**2).sqrt()
        return Scalings(sigma_data**2 / total_std**2, sigma * sigma_data / total_std, 1 / total_std, sigma.log() / 4)

    return scalings


def karras_as_diffusers() -> Precondition:
    """What diffusers' x2 pipeline does with latents of unit variance y: y / (sigma^2 + 1) + sigma * network(y, time).

    Both weights are for other latents (`karras`); the network's own estimate is not reached.
    """
    return lambda sigma: Scalings(_input_scale(sigma) ** 3, sigma, _input_scale(sigma), sigma.log() / 4)


def _input_scale(sigma: Tensor) -> Tensor:
    return torch.rsqrt(sigma**2 + 1)
