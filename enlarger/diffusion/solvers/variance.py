"""DDIM and DDPM with all that their code leaves open: clipped estimates, and how much noise a step adds."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Step, Steps

Clip = Callable[[Tensor], Tensor]
LEAST = 1e-20  # of a variance


def ddim_clipped(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 0.0, clip: Clip | None = None,
    consistent: bool = False,
) -> Steps:  # fmt: skip
    """Song et al. 2021, equation 12, whose denoised estimate is clipped; the noise estimate stays that of the network,
    unless it shall be `consistent` with the clipped one. Levels may be very high: nothing is subtracted there."""
    for sigma, lower in pairwise(sigmas):
        denoised = denoise(x, sigma)
        slope = (x - denoised) / sigma
        if clip is not None:
            denoised = clip(denoised)
            slope = (x - denoised) / sigma if consistent else slope
        up = torch.minimum(lower, eta * (lower**2 * (1 - (lower / sigma) ** 2)).clamp(min=0).sqrt())
        x = denoised + (lower**2 - up**2).sqrt() * slope
        if eta > 0:
            x = x + noise(x) * up
        x = yield Step(x, denoised, lower)


def ddpm_of(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, deviation: Callable[[Tensor, Tensor], Tensor | None]
) -> Steps:
    """Ho et al. 2020, equations 6 and 7: the mean of the posterior, and noise of a `deviation` unless it is None."""
    for sigma, lower in pairwise(sigmas):
        denoised = denoise(x, sigma)
        x = denoised + (lower / sigma) ** 2 * (x - denoised)
        added = deviation(sigma, lower)
        x = x if added is None else x + noise(x) * added
        x = yield Step(x, denoised, lower)


def posterior_variance(kind: str, sigma: Tensor, lower: Tensor, predicted: Tensor | None = None) -> Tensor:
    """The variance of the noise of a DDPM step at unit variance, by the names of `variance_type`.

    "fixed_large" is beta, the others but "learned" start from the variance of the posterior; `predicted` is what the
    network says of it (Nichol and Dhariwal 2021, equation 15). Names that end in "log" give what diffusers gives.
    """
    product, before = 1 / (1 + sigma**2), 1 / (1 + lower**2)
    beta = 1 - product / before
    small = ((1 - before) / (1 - product) * beta).clamp(min=LEAST)
    if kind == "learned_range" and predicted is not None:
        share = (predicted + 1) / 2
        return share * beta.log() + (1 - share) * small.log()
    if kind == "learned" and predicted is not None:
        return predicted
    log = beta.float().log().to(beta)  # its root is a number where the rounded beta is 1
    return {"fixed_large": beta, "fixed_large_log": log, "fixed_small_log": small.sqrt()}.get(kind, small)


def posterior_deviation(kind: str, sigma: Tensor, lower: Tensor, predicted: Tensor | None = None) -> Tensor:
    """How much noise a DDPM step adds to clean + sigma * noise, by the names of `variance_type`."""
    variance = posterior_variance(kind, sigma, lower, predicted)
    if kind == "learned_range":
        return torch.exp(variance / 2) * (1 + lower**2).sqrt()
    return (variance if kind == "fixed_small_log" else variance.sqrt()) * (1 + lower**2).sqrt()
