"""DPM-Solvers of the noise estimate, over t = -log(sigma) (Lu et al. 2022a)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Step
from enlarger.diffusion.solvers.levels import halfway, lowest, split_level, split_time
from enlarger.errors import NonFinite


def dpm2(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """Karras et al. 2022, algorithm 2 without churn: the slope of the level halfway over log(sigma)."""
    return dpm2_ancestral(denoise, x, sigmas, noise, eta=0.0)


def dpm2_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0
) -> Iterator[Step]:  # fmt: skip
    """`dpm2` to below the next level, then fresh noise up to it."""
    for sigma, lower in pairwise(sigmas):
        clean = denoise(x, sigma)
        down, up = split_level(sigma, lower, eta)
        slope = (x - clean) / sigma
        if down > 0:
            middle = halfway(sigma, down)
            guess = x + slope * (middle - sigma)
            slope = (guess - denoise(guess, middle)) / middle
        x = x + slope * (down - sigma)
        if eta and lower > 0:
            x = x + noise(x) * up
        yield Step(x, clean, lower)


def dpm_fast(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 0.0) -> Iterator[Step]:
    """DPM-Solver-fast: as many calls as the ladder has steps, spent on steps of third order and a few lower ones.

    Of the ladder only its ends and its length are used; the levels are even over log(sigma). If it ends at 0, the last
    call is an Euler step from the last level above 0.
    """
    end = lowest(sigmas)
    calls = len(sigmas) - (1 if sigmas[-1] > 0 else 2)
    orders = _orders(calls)
    first, last = -math.log(sigmas[0]), -math.log(end)
    stops = [first + (last - first) * i / len(orders) for i in range(len(orders))] + [last]
    for order, (t, goal) in zip(orders, pairwise(stops), strict=True):
        down, up = split_time(t, goal, last, eta)
        x, clean = _dpm_step(denoise, x, t, down, order)
        x = x + noise(x) * up if eta else x
        yield Step(x, clean, _level(goal) if goal < last else torch.tensor(end, dtype=torch.float64))
    if sigmas[-1] == 0:
        clean = denoise(x, sigmas[-2])
        yield Step(clean, clean, sigmas[-1])


def dpm_adaptive(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 0.0, control: "Control | None" = None
) -> Iterator[Step]:
    """DPM-Solver-23 with error control, Lu et al. 2022, algorithm 3 at order 3.

    Of the ladder only the first level and the last above 0 are used; if it ends at 0, an Euler step goes there.
    Accepted steps are yielded. The error is measured over the whole batch, so give it one image at a time where images
    must not depend on each other. Raises NonFinite, since no step is small enough then.
    """
    control = Control() if control is None else control
    t, stop, h = -math.log(sigmas[0]), -math.log(lowest(sigmas)), control.first
    before = x  # the lower-order solution of the last accepted step
    errors: list[float] = []  # inverse, of this step and the last two accepted
    while t < stop - 1e-5:
        goal = min(stop, t + h)
        down, up = split_time(t, goal, stop, eta)
        low, high, clean = _dpm_23_step(denoise, x, t, down)
        tolerance = torch.clamp(control.relative * torch.maximum(low.abs(), before.abs()), min=control.absolute)
        error = float(((low - high) / tolerance).square().mean().sqrt())
        if not math.isfinite(error):
            raise NonFinite(
                f"the network's output is not finite at sigma {math.exp(-t):.4g} ({x.dtype}); run in float32"
            )
        inverse = 1 / (error + 1e-8)
        errors = [inverse, *errors[1:]] if errors else [inverse] * 3
        factor = control.factor(errors, order=1.5 if eta else 3)
        h *= factor
        if factor >= control.safety:
            before, t, errors = low, goal, [errors[0], *errors[:2]]
            x = high + noise(x) * up if eta else high
            yield Step(x, clean, _level(t))
    if sigmas[-1] == 0:
        clean = denoise(x, sigmas[-2])
        yield Step(clean, clean, sigmas[-1])


@dataclass(frozen=True)
class Control:
    """A PID controller of step sizes over t = -log(sigma) (Soderlind 2003), with the tolerances of the error."""

    relative: float = 0.05
    absolute: float = 0.0078
    proportional: float = 0.0
    integral: float = 1.0
    derivative: float = 0.0
    safety: float = 0.81  # the least factor at which a step is accepted
    first: float = 0.05  # the first step

    def factor(self, errors: Sequence[float], order: float) -> float:
        """How much longer the next step is, from the inverse errors of this step and the two accepted before."""
        powers = (
            (self.proportional + self.integral + self.derivative) / order,
            -(self.proportional + 2 * self.derivative) / order,
            self.derivative / order,
        )
        return 1 + math.atan(math.prod(e**p for e, p in zip(errors, powers, strict=True)) - 1)


@dataclass(frozen=True, eq=False)
class _Leg:
    """The way from t over h of log(sigma): slopes at a share of it, and the factors of exponential integration."""

    denoise: Denoise
    t: float
    h: float

    def slope(self, x: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """The noise estimate there and the clean one."""
        sigma = _level(self.t + share * self.h)
        clean = self.denoise(x, sigma)
        return (x - clean) / sigma, clean

    def grow(self, share: float) -> float:
        return math.exp(-(self.t + share * self.h)) * math.expm1(share * self.h)

    def bend(self, share: float) -> float:
        return math.exp(-(self.t + share * self.h)) * (math.expm1(share * self.h) / (share * self.h) - 1)


def _dpm_step(denoise: Denoise, x: Tensor, t: float, goal: float, order: int) -> tuple[Tensor, Tensor]:
    """A DPM-Solver step of order 1, 2 or 3 and the first clean estimate."""
    if order == 3:
        _, high, clean = _dpm_23_step(denoise, x, t, goal)
        return high, clean
    leg = _Leg(denoise, t, goal - t)
    first, clean = leg.slope(x, 0)
    if order == 1:
        return x - leg.grow(1) * first, clean
    second, _ = leg.slope(x - leg.grow(1 / 2) * first, 1 / 2)
    return x - leg.grow(1) * second, clean


def _dpm_23_step(denoise: Denoise, x: Tensor, t: float, goal: float) -> tuple[Tensor, Tensor, Tensor]:
    """DPM-Solver-2 and -3 from t to goal with shared evaluations (Lu et al. 2022, algorithms 1 and 2)."""
    leg = _Leg(denoise, t, goal - t)
    first, clean = leg.slope(x, 0)
    second, _ = leg.slope(x - leg.grow(1 / 3) * first, 1 / 3)
    third, _ = leg.slope(x - leg.grow(2 / 3) * first - leg.bend(2 / 3) * 2 * (second - first), 2 / 3)
    low = x - leg.grow(1) * first - 1.5 * leg.grow(1) * (second - first)
    high = x - leg.grow(1) * first - leg.bend(1) * 1.5 * (third - first)
    return low, high, clean


def _orders(calls: int) -> list[int]:
    """The orders of the steps that together make so many calls (Lu et al. 2022a, section 3.4)."""
    if calls % 3:
        return [3] * (calls // 3) + [calls % 3]
    return [3] * (calls // 3 - 1) + [2, 1] if calls else []


def _level(t: float) -> Tensor:
    return torch.tensor(math.exp(-t), dtype=torch.float64)
