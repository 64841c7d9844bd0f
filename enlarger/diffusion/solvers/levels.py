"""Noise levels between and below the rungs of a ladder."""

import math

import torch
from torch import Tensor


def split_level(sigma: Tensor, lower: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """The level to descend to and the noise to add, so that together they reach `lower`."""
    up = torch.minimum(lower, eta * (lower**2 * (sigma**2 - lower**2) / sigma**2).sqrt())
    return (lower**2 - up**2).sqrt(), up


def split_time(t: float, goal: float, stop: float, eta: float) -> tuple[float, float]:
    """`split_level` over t = -log(sigma), not descending past `stop`."""
    if not eta:
        return goal, 0.0
    sigma, lower = (torch.tensor(math.exp(-v), dtype=torch.float64) for v in (t, goal))
    down = min(stop, -math.log(split_level(sigma, lower, eta)[0]))
    return down, math.sqrt(max(0.0, math.exp(-2 * goal) - math.exp(-2 * down)))


def halfway(sigma: Tensor, lower: Tensor) -> Tensor:
    """The level halfway over log(sigma)."""
    return (sigma * lower).sqrt()


def lowest(sigmas: Tensor) -> float:
    """The last level above 0, or the first one where there is no other."""
    return float(sigmas[-1] if sigmas[-1] > 0 else sigmas[-2])
