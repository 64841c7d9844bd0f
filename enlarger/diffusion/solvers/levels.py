"""Noise levels between and below those of a sigma schedule."""

import math

import torch
from torch import Tensor


def ancestral_step(sigma: Tensor, lower: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """The level to descend to and the noise to add, so that together they reach `lower`."""
    sigma_up = torch.minimum(lower, eta * (lower**2 * (sigma**2 - lower**2) / sigma**2).sqrt())
    return (lower**2 - sigma_up**2).sqrt(), sigma_up


def ancestral_step_in_time(t: float, t_next: float, t_end: float, eta: float) -> tuple[float, float]:
    """`ancestral_step` over t = -log(sigma), not descending past `t_end`."""
    if not eta:
        return t_next, 0.0
    sigma, lower = (torch.tensor(math.exp(-v), dtype=torch.float64) for v in (t, t_next))
    t_down = min(t_end, -math.log(ancestral_step(sigma, lower, eta)[0]))
    return t_down, math.sqrt(max(0.0, math.exp(-2 * t_next) - math.exp(-2 * t_down)))


def log_midpoint(sigma: Tensor, lower: Tensor) -> Tensor:
    """The level halfway over log(sigma)."""
    return (sigma * lower).sqrt()


def last_positive_sigma(sigmas: Tensor) -> float:
    """The last level above 0, or the first one where there is no other."""
    return float(sigmas[-1] if sigmas[-1] > 0 else sigmas[-2])
