"""A network's raw output to a denoised estimate, for loops that are written by hand, and estimates kept in bounds."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from enlarger.diffusion.precondition import Precondition, Scalings

Coordinates = Callable[[Tensor], Tensor]  # of a noise level: how many times larger clean + sigma * noise is


def variance_preserving(sigma: Tensor) -> Tensor:
    """Latents of unit variance outside."""
    return (sigma**2 + 1).sqrt()


def variance_exploding(sigma: Tensor) -> Tensor:
    """Latents that are clean + sigma * noise outside too."""
    return torch.ones_like(sigma)


def flow_matching(sigma: Tensor) -> Tensor:
    """Latents outside are (1 - t) clean + t noise with t = sigma / (1 + sigma)."""
    return sigma + 1


def outside_precondition(
    prediction: str, outside: Coordinates, time: Callable[[], Tensor] | None = None, by_noise: bool = False
) -> Precondition:
    """How an output of a network that is trained on the `outside` latents becomes a denoised estimate.

    The network is told `time`, whatever the noise level is. `by_noise` reads a velocity's noise estimate, which belongs
    to the same denoised one at unit variance only.
    """
    trained = variance_preserving if outside is variance_exploding else outside

    def scalings(sigma: Tensor) -> Scalings:
        scale, called_time = trained(sigma), sigma if time is None else time()
        skip, output = {
            "epsilon": (1.0, -sigma),
            "sample": (0.0, 1.0),
            "original_sample": (0.0, 1.0),
            "v_prediction": (1 - (sigma / scale) ** 2 if by_noise else 1 / scale**2, -sigma / scale),
            "flow_prediction": (1 / scale, -sigma / scale if outside is flow_matching else -sigma),
        }[prediction]
        return Scalings(skip, output, 1 / scale, called_time)

    return scalings


@dataclass(frozen=True)
class Bounds:
    """Clipping to +-`clip`, or dynamic thresholding (Saharia et al. 2022, section 2.3), or nothing."""

    clip: float | None = None
    quantile: float | None = None
    most: float = 1.0

    def __call__(self, estimate: Tensor) -> Tensor:
        if self.quantile is not None:
            limit = torch.quantile(estimate.flatten(1).abs().float(), self.quantile, dim=1).clamp(1, self.most)
            limit = limit.reshape(-1, *[1] * (estimate.ndim - 1))
            return torch.clamp(estimate, -limit, limit) / limit
        return estimate if self.clip is None else estimate.clamp(-self.clip, self.clip)
