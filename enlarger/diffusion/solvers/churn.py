"""Euler's method with noise added before each step (Karras et al. 2022, algorithm 2)."""

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Step, Steps


@dataclass(frozen=True)
class Churn:
    """How much noise a step of a run of `steps` adds, as a share of its level, and between which levels."""

    amount: float = 0.0
    least: float = 0.0
    most: float = math.inf
    scale: float = 1.0  # of the noise
    steps: int = 1

    def share(self, sigma: float) -> float:
        return min(self.amount / self.steps, 2**0.5 - 1) if self.least <= sigma <= self.most else 0.0


def euler_churned(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, churn: Churn = Churn()) -> Steps:
    """Noise up to a higher level, then Euler's step from there."""
    for sigma, lower in pairwise(sigmas):
        share = churn.share(float(sigma))
        higher = sigma * (1 + share)
        if share > 0:
            x = x + noise(x) * churn.scale * (higher**2 - sigma**2).sqrt()
        denoised = denoise(x, higher)
        x = x + (x - denoised) / higher * (lower - higher)
        x = yield Step(x, denoised, lower)
