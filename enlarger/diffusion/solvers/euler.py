"""Solvers that follow the slope (x - clean) / sigma from one level to the next."""

from itertools import pairwise

from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Step, Steps
from enlarger.diffusion.solvers.levels import ancestral_step


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Steps:
    """First order; DDIM at eta 0 is the same in these coordinates (Song et al. 2021)."""
    for sigma, lower in pairwise(sigmas):
        denoised = denoise(x, sigma)
        x = x + (x - denoised) / sigma * (lower - sigma)
        x = yield Step(x, denoised, lower)


def euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0) -> Steps:
    """Euler to below the next level, then fresh noise up to it. DDIM with that eta is the same."""
    for sigma, lower in pairwise(sigmas):
        denoised = denoise(x, sigma)
        sigma_down, sigma_up = ancestral_step(sigma, lower, eta)
        x = x + (x - denoised) / sigma * (sigma_down - sigma)
        if eta:
            x = x + noise(x) * sigma_up
        x = yield Step(x, denoised, lower)


def ddim(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 0.0) -> Steps:
    """Song et al. 2021, equation 12, rewritten for x = clean + sigma * noise."""
    return euler_ancestral(denoise, x, sigmas, noise, eta)


def ddpm(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Steps:
    """Ho et al. 2020, equations 6 and 7, with the variance of the posterior ("fixed small")."""
    return euler_ancestral(denoise, x, sigmas, noise, eta=1.0)


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, lower_order_final: bool = False) -> Steps:
    """Karras et al. 2022, algorithm 1: an Euler step, then the average of the slopes at both its ends.

    The step to 0 is Euler's, with `lower_order_final` the last one to any level.
    """
    for sigma, lower in pairwise(sigmas):
        denoised = denoise(x, sigma)
        slope = (x - denoised) / sigma
        if lower > 0 and not (lower_order_final and lower == sigmas[-1]):
            guess = x + slope * (lower - sigma)
            slope = (slope + (guess - denoise(guess, lower)) / lower) / 2
        x = x + slope * (lower - sigma)
        x = yield Step(x, denoised, lower)
