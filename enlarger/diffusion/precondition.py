"""How a network's raw output becomes a clean estimate: Karras et al. 2022, equation 7, for each way of training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scales:
    """clean = skip * x + output * network(input * x, time)."""

    skip: Tensor | float
    output: Tensor | float
    input: Tensor | float
    time: Tensor  # what the network is told of the noise level


class Timed(Protocol):
    """What knows the training time of a noise level: `NoiseSchedule`, or `Clock` on a certain ladder."""

    def time(self, sigma: Tensor) -> Tensor: ...


Precondition = Callable[[Tensor], Scales]  # from a scalar sigma


def epsilon(schedule: Timed) -> Precondition:
    """The network predicts the noise of a variance-preserving latent (SD1, SD2-base, SDXL)."""
    return lambda sigma: Scales(1.0, -sigma, _shrink(sigma), schedule.time(sigma))


def velocity(schedule: Timed) -> Precondition:
    """The network predicts v = sqrt(a) noise - sqrt(1 - a) clean (SD2 768, x4; Salimans and Ho 2022)."""
    return lambda sigma: Scales(1 / (sigma**2 + 1), -sigma * _shrink(sigma), _shrink(sigma), schedule.time(sigma))


def sample(schedule: Timed) -> Precondition:
    """The network predicts the clean latent itself."""
    return lambda sigma: Scales(0.0, 1.0, _shrink(sigma), schedule.time(sigma))


def karras(deviation: float = 1.0) -> Precondition:
    """Karras et al. 2022, table 1, last column, for data of that deviation; the network is told log(sigma) / 4."""

    def scales(sigma: Tensor) -> Scales:
        total = (sigma**2 + deviation**2).sqrt()
        return Scales(deviation**2 / total**2, sigma * deviation / total, 1 / total, sigma.log() / 4)

    return scales


def _shrink(sigma: Tensor) -> Tensor:
    return torch.rsqrt(sigma**2 + 1)
