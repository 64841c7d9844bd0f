"""Solvers of distilled networks, which jump to the denoised latents and take new noise."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Step, Steps

Boundary = tuple[float, float]  # weights of the noisy latents at unit variance and of the estimate


def lcm(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, boundary: Sequence[Boundary] | None = None) -> Steps:
    """Latent consistency sampling (Luo et al. 2023, algorithm 3; Song et al. 2023, algorithm 1).

    `boundary` mixes the noisy latents into each estimate, so that it is exact at the lowest time.
    """
    mixed = boundary or [(0.0, 1.0)] * (len(sigmas) - 1)
    for (skip, out), (sigma, lower) in zip(mixed, pairwise(sigmas), strict=True):
        denoised = out * denoise(x, sigma) + skip * x / (sigma**2 + 1).sqrt()
        x = denoised + lower * noise(x) if lower > 0 else denoised
        x = yield Step(x, denoised, lower)


def tcd(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, below: Sequence[Tensor] | None = None) -> Steps:
    """Trajectory consistency sampling (Zheng et al. 2024, algorithm 4): to a level `below` the next, then noise up.

    Without `below` no noise is added, nor where it is no lower than the next level.
    """
    for down, (sigma, lower) in zip(below or sigmas[1:], pairwise(sigmas), strict=True):
        denoised = denoise(x, sigma)
        x = denoised + (x - denoised) / sigma * down
        if down < lower:
            x = x + noise(x) * (lower**2 - down**2).sqrt()
        x = yield Step(x, denoised, lower)


def consistency_boundary(time: float, scaling: float = 10.0, deviation: float = 0.5) -> Boundary:
    """Song et al. 2023, equation 5, for a training time that is multiplied by `scaling`."""
    scaled = time * scaling
    total = scaled**2 + deviation**2
    return deviation**2 / total, scaled / total**0.5
