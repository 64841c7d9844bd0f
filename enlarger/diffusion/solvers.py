"""Solvers of the probability-flow equation dx/dsigma = (x - clean) / sigma and of its stochastic kin.

Each takes the denoiser, a latent x = clean + sigma * noise at the first level of a falling ladder, the ladder
(float64, CPU), and a source of noise; each yields a step per rung.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Solver, Step
from enlarger.errors import NonFinite


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """First order; DDIM at eta 0 is the same in these coordinates (Song et al. 2021)."""
    for sigma, lower in pairwise(sigmas):
        clean = denoise(x, sigma)
        x = x + (x - clean) / sigma * (lower - sigma)
        yield Step(x, clean, lower)


def euler_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0
) -> Iterator[Step]:  # fmt: skip
    """Euler to below the next level, then fresh noise up to it. DDIM with that eta is the same."""
    for sigma, lower in pairwise(sigmas):
        clean = denoise(x, sigma)
        down, up = split_level(sigma, lower, eta)
        x = x + (x - clean) / sigma * (down - sigma)
        if eta:
            x = x + noise(x) * up
        yield Step(x, clean, lower)


def ddim(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 0.0) -> Iterator[Step]:
    """Song et al. 2021, equation 12, rewritten for x = clean + sigma * noise."""
    return euler_ancestral(denoise, x, sigmas, noise, eta)


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """Karras et al. 2022, algorithm 1: an Euler step, then the average of the slopes at both its ends."""
    for sigma, lower in pairwise(sigmas):
        clean = denoise(x, sigma)
        slope = (x - clean) / sigma
        if lower > 0:
            guess = x + slope * (lower - sigma)
            slope = (slope + (guess - denoise(guess, lower)) / lower) / 2
        x = x + slope * (lower - sigma)
        yield Step(x, clean, lower)


def plms(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """Liu et al. 2022 without the Runge-Kutta start: Adams-Bashforth slopes, the first step corrected once."""
    slopes: list[Tensor] = []
    for sigma, lower in pairwise(sigmas):
        clean = denoise(x, sigma)
        slopes = [(x - clean) / sigma, *slopes[:3]]
        slope = _adams_bashforth(slopes)
        if len(slopes) == 1 and len(sigmas) > 2:
            guess = x + slope * (lower - sigma)
            slope = (slope + (guess - denoise(guess, lower)) / lower) / 2
        x = x + slope * (lower - sigma)
        yield Step(x, clean, lower)


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2, over t = -log(sigma)."""
    previous, last = None, sigmas[0]
    for sigma, lower in pairwise(sigmas):
        clean = denoise(x, sigma)
        h = sigma.log() - lower.log()
        target = clean
        if previous is not None and lower > 0:
            ratio = (last.log() - sigma.log()) / h
            target = clean + (clean - previous) / (2 * ratio)
        x = lower / sigma * x - torch.expm1(-h) * target
        previous, last = clean, sigma
        yield Step(x, clean, lower)


def dpmpp_2m_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0
) -> Iterator[Step]:  # fmt: skip
    """SDE-DPM-Solver++(2M), midpoint form; eta 0 is the deterministic solver. Independent noise at each step."""
    previous, last = None, sigmas[0]
    for sigma, lower in pairwise(sigmas):
        clean = denoise(x, sigma)
        h = sigma.log() - lower.log()
        gain = -torch.expm1(-h * (1 + eta))
        x = lower / sigma * _decay(eta, h) * x + gain * clean
        if previous is not None and lower > 0:
            ratio = (last.log() - sigma.log()) / h
            x = x + gain / (2 * ratio) * (clean - previous)
        if eta and lower > 0:
            x = x + noise(x) * lower * torch.sqrt(-torch.expm1(-2 * eta * h))
        previous, last = clean, sigma
        yield Step(x, clean, lower)


def dpm_adaptive(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 0.0, control: "Control | None" = None
) -> Iterator[Step]:
    """DPM-Solver-23 with error control, Lu et al. 2022, algorithm 3 at order 3.

    Of the ladder only the first level and the last above 0 are used; if it ends at 0, an Euler step goes there.
    Accepted steps are yielded. The error is measured over the whole batch, so give it one image at a time where images
    must not depend on each other. Raises NonFinite, since no step is small enough then.
    """
    control = Control() if control is None else control
    end = float(sigmas[-1] if sigmas[-1] > 0 else sigmas[-2])
    t, stop, h = -math.log(sigmas[0]), -math.log(end), control.first
    before = x  # the lower-order solution of the last accepted step
    errors: list[float] = []  # inverse, of this step and the last two accepted
    while t < stop - 1e-5:
        goal = min(stop, t + h)
        down, up = split_time(t, goal, stop, eta)
        low, high, clean = _dpm_3_step(denoise, x, t, down)
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
            yield Step(x, clean, torch.tensor(math.exp(-t), dtype=torch.float64))
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


SOLVERS: Mapping[str, Solver] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "ddim": ddim,
    "heun": heun,
    "plms": plms,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpm_adaptive": dpm_adaptive,
}
"""The solvers by the names that users type."""


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


def _dpm_3_step(denoise: Denoise, x: Tensor, t: float, goal: float) -> tuple[Tensor, Tensor, Tensor]:
    """DPM-Solver-2 and -3 from t to goal with shared evaluations (Lu et al. 2022, algorithms 1 and 2)."""
    h = goal - t

    def noise_at(x: Tensor, share: float) -> tuple[Tensor, Tensor]:
        sigma = torch.tensor(math.exp(-(t + share * h)), dtype=torch.float64)
        clean = denoise(x, sigma)
        return (x - clean) / sigma, clean

    def grow(share: float) -> float:
        return math.exp(-(t + share * h)) * math.expm1(share * h)

    def bend(share: float) -> float:
        return math.exp(-(t + share * h)) * (math.expm1(share * h) / (share * h) - 1)

    first, clean = noise_at(x, 0)
    second, _ = noise_at(x - grow(1 / 3) * first, 1 / 3)
    third, _ = noise_at(x - grow(2 / 3) * first - bend(2 / 3) * 2 * (second - first), 2 / 3)
    low = x - grow(1) * first - 1.5 * grow(1) * (second - first)
    high = x - grow(1) * first - bend(1) * 1.5 * (third - first)
    return low, high, clean


def _adams_bashforth(slopes: list[Tensor]) -> Tensor:
    """The slope of the next step from up to four past ones, newest first."""
    weights = {1: (1,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}
    mixed = slopes[0] * weights[len(slopes)][0]
    for weight, slope in zip(weights[len(slopes)][1:], slopes[1:], strict=True):
        mixed = mixed + weight * slope
    return mixed


def _decay(eta: float, h: Tensor) -> Tensor:
    return torch.exp(-eta * h) if eta else torch.ones_like(h)
