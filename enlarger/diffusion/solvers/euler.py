"""Solvers that follow the slope (x - clean) / sigma from one level to the next."""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Step
from enlarger.diffusion.solvers.levels import ancestral_step


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """First order; DDIM at eta 0 is the same in these coordinates (Song et al. 2021)."""
    for sigma, lower in pairwise(sigmas):
        denoised = denoise(x, sigma)
        x = x + (x - denoised) / sigma * (lower - sigma)
        yield Step(x, denoised, lower)


def euler_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0
) -> Iterator[Step]:  # fmt: skip
    """Euler to below the next level, then fresh noise up to it. DDIM with that eta is the same."""
    for sigma, lower in pairwise(sigmas):
        denoised = denoise(x, sigma)
        sigma_down, sigma_up = ancestral_step(sigma, lower, eta)
        x = x + (x - denoised) / sigma * (sigma_down - sigma)
        if eta:
            x = x + noise(x) * sigma_up
        yield Step(x, denoised, lower)


def ddim(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 0.0) -> Iterator[Step]:
    """Song et al. 2021, equation 12, rewritten for x = clean + sigma * noise."""
    return euler_ancestral(denoise, x, sigmas, noise, eta)


def ddpm(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """Ho et al. 2020, equations 6 and 7, with the variance of the posterior ("fixed small")."""
    return euler_ancestral(denoise, x, sigmas, noise, eta=1.0)


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """Karras et al. 2022, algorithm 1: an Euler step, then the average of the slopes at both its ends."""
    for sigma, lower in pairwise(sigmas):
        denoised = denoise(x, sigma)
        slope = (x - denoised) / sigma
        if lower > 0:
            guess = x + slope * (lower - sigma)
            slope = (slope + (guess - denoise(guess, lower)) / lower) / 2
        x = x + slope * (lower - sigma)
        yield Step(x, denoised, lower)
