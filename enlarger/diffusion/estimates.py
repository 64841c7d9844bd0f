"""A network's raw output to a denoised estimate, for loops that are written by hand, and estimates kept in bounds."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from enlarger.errors import InputError

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


def denoised_from(
    prediction: str, output: Tensor, x: Tensor, sigma: Tensor, outside: Coordinates, by_noise: bool = False
) -> Tensor:  # fmt: skip
    """The denoised estimate of x = clean + sigma * noise, from an output that is trained on the `outside` latents.

    `by_noise` reads a velocity's noise estimate, which belongs to the same denoised one at unit variance only.
    """
    if prediction == "epsilon":
        return x - sigma * output
    if prediction in ("sample", "original_sample"):
        return output
    scale = variance_preserving(sigma) if outside is variance_exploding else outside(sigma)
    if prediction == "v_prediction" and by_noise:
        return x - sigma * (output / scale + sigma / scale**2 * x)
    if prediction == "v_prediction":
        return x / scale**2 - sigma / scale * output
    if prediction == "flow_prediction":
        return x / scale - (sigma / scale if outside is flow_matching else sigma) * output
    raise InputError(f"prediction_type is {prediction!r}, expected epsilon, sample, v_prediction or flow_prediction")


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
