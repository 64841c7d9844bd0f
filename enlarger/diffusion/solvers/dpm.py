"""DPM-Solvers of the noise estimate, over t = -log(sigma) (Lu et al. 2022a)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Step, Steps
from enlarger.diffusion.solvers.levels import ancestral_step, ancestral_step_in_time, last_positive_sigma, log_midpoint
from enlarger.errors import NonFinite


def dpm2(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Steps:
    """Karras et al. 2022, algorithm 2 without churn: the slope of the level halfway over log(sigma)."""
    return dpm2_ancestral(denoise, x, sigmas, noise, eta=0.0)


def dpm2_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0) -> Steps:
    """`dpm2` to below the next level, then fresh noise up to it."""
    for sigma, lower in pairwise(sigmas):
        denoised = denoise(x, sigma)
        sigma_down, sigma_up = ancestral_step(sigma, lower, eta)
        slope = (x - denoised) / sigma
        if sigma_down > 0:
            midpoint = log_midpoint(sigma, sigma_down)
            guess = x + slope * (midpoint - sigma)
            slope = (guess - denoise(guess, midpoint)) / midpoint
        x = x + slope * (sigma_down - sigma)
        if eta and lower > 0:
            x = x + noise(x) * sigma_up
        x = yield Step(x, denoised, lower)


def dpm_fast(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 0.0) -> Steps:
    """DPM-Solver-fast: as many calls as `sigmas` has steps, spent on steps of third order and a few lower ones.

    Of `sigmas` only its ends and its length are used; the levels are even over log(sigma). If it ends at 0, the last
    call is an Euler step from the last level above 0.
    """
    sigma_min = last_positive_sigma(sigmas)
    num_calls = len(sigmas) - (1 if sigmas[-1] > 0 else 2)
    orders = _step_orders(num_calls)
    t_start, t_end = -math.log(sigmas[0]), -math.log(sigma_min)
    times = [t_start + (t_end - t_start) * i / len(orders) for i in range(len(orders))] + [t_end]
    for order, (t, t_next) in zip(orders, pairwise(times), strict=True):
        t_down, sigma_up = ancestral_step_in_time(t, t_next, t_end, eta)
        x, denoised = _dpm_step(denoise, x, t, t_down, order)
        x = x + noise(x) * sigma_up if eta else x
        x = yield Step(
            x, denoised, _sigma_at(t_next) if t_next < t_end else torch.tensor(sigma_min, dtype=torch.float64)
        )
    if sigmas[-1] == 0:
        denoised = denoise(x, sigmas[-2])
        yield Step(denoised, denoised, sigmas[-1])


def dpm_adaptive(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    eta: float = 0.0,
    step_size_controller: "PIDStepSizeController | None" = None,
) -> Steps:
    """DPM-Solver-23 with error control, Lu et al. 2022, algorithm 3 at order 3.

    Of `sigmas` only the first level and the last above 0 are used; if it ends at 0, an Euler step goes there.
    Accepted steps are yielded. The error is measured over the whole batch, so give it one image at a time where images
    must not depend on each other. Raises NonFinite, since no step is small enough then.
    """
    step_size_controller = PIDStepSizeController() if step_size_controller is None else step_size_controller
    t, t_end, h = -math.log(sigmas[0]), -math.log(last_positive_sigma(sigmas)), step_size_controller.h_init
    x_prev = x  # the lower-order solution of the last accepted step
    inverse_errors: list[float] = []  # inverse, of this step and the last two accepted
    while t < t_end - 1e-5:
        t_next = min(t_end, t + h)
        t_down, sigma_up = ancestral_step_in_time(t, t_next, t_end, eta)
        x_low, x_high, denoised = _dpm_23_step(denoise, x, t, t_down)
        tolerance = torch.clamp(
            step_size_controller.rtol * torch.maximum(x_low.abs(), x_prev.abs()), min=step_size_controller.atol
        )
        error = float(((x_low - x_high) / tolerance).square().mean().sqrt())
        if not math.isfinite(error):
            raise NonFinite(
                f"the network's output is not finite at sigma {math.exp(-t):.4g} ({x.dtype}); run in float32"
            )
        inverse_error = 1 / (error + 1e-8)
        inverse_errors = [inverse_error, *inverse_errors[1:]] if inverse_errors else [inverse_error] * 3
        factor = step_size_controller.factor(inverse_errors, order=1.5 if eta else 3)
        h *= factor
        if factor >= step_size_controller.accept_safety:
            x_prev, t, inverse_errors = x_low, t_next, [inverse_errors[0], *inverse_errors[:2]]
            x = x_high + noise(x) * sigma_up if eta else x_high
            x = yield Step(x, denoised, _sigma_at(t))
    if sigmas[-1] == 0:
        denoised = denoise(x, sigmas[-2])
        yield Step(denoised, denoised, sigmas[-1])


@dataclass(frozen=True)
class PIDStepSizeController:
    """A PID controller of step sizes over t = -log(sigma) (Soderlind 2003), with the tolerances of the error."""

    rtol: float = 0.05
    atol: float = 0.0078
    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0
    accept_safety: float = 0.81  # the least factor at which a step is accepted
    h_init: float = 0.05  # the first step

    def factor(self, inverse_errors: Sequence[float], order: float) -> float:
        """How much longer the next step is, from the inverse errors of this step and the two accepted before."""
        powers = (
            (self.pcoeff + self.icoeff + self.dcoeff) / order,
            -(self.pcoeff + 2 * self.dcoeff) / order,
            self.dcoeff / order,
        )
        return 1 + math.atan(math.prod(e**p for e, p in zip(inverse_errors, powers, strict=True)) - 1)


@dataclass(frozen=True, eq=False)
class _ExponentialStep:
    """The way from t over h of log(sigma): slopes at a share of it, and the factors of exponential integration."""

    denoise: Denoise
    t: float
    h: float

    def slope(self, x: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
        """The noise estimate there and the denoised one."""
        sigma = _sigma_at(self.t + fraction * self.h)
        denoised = self.denoise(x, sigma)
        return (x - denoised) / sigma, denoised

    def first_order_weight(self, fraction: float) -> float:
        return math.exp(-(self.t + fraction * self.h)) * math.expm1(fraction * self.h)

    def second_order_weight(self, fraction: float) -> float:
        return math.exp(-(self.t + fraction * self.h)) * (math.expm1(fraction * self.h) / (fraction * self.h) - 1)


def _dpm_step(denoise: Denoise, x: Tensor, t: float, t_next: float, order: int) -> tuple[Tensor, Tensor]:
    """A DPM-Solver step of order 1, 2 or 3 and the first denoised estimate."""
    if order == 3:
        _, x_high, denoised = _dpm_23_step(denoise, x, t, t_next)
        return x_high, denoised
    step = _ExponentialStep(denoise, t, t_next - t)
    first, denoised = step.slope(x, 0)
    if order == 1:
        return x - step.first_order_weight(1) * first, denoised
    second, _ = step.slope(x - step.first_order_weight(1 / 2) * first, 1 / 2)
    return x - step.first_order_weight(1) * second, denoised


def _dpm_23_step(denoise: Denoise, x: Tensor, t: float, t_next: float) -> tuple[Tensor, Tensor, Tensor]:
    """DPM-Solver-2 and -3 from t to t_next with shared evaluations (Lu et al. 2022, algorithms 1 and 2)."""
    step = _ExponentialStep(denoise, t, t_next - t)
    first, denoised = step.slope(x, 0)
    second, _ = step.slope(x - step.first_order_weight(1 / 3) * first, 1 / 3)
    third, _ = step.slope(
        x - step.first_order_weight(2 / 3) * first - step.second_order_weight(2 / 3) * 2 * (second - first), 2 / 3
    )
    x_low = x - step.first_order_weight(1) * first - 1.5 * step.first_order_weight(1) * (second - first)
    x_high = x - step.first_order_weight(1) * first - step.second_order_weight(1) * 1.5 * (third - first)
    return x_low, x_high, denoised


def _step_orders(num_calls: int) -> list[int]:
    """The orders of the steps that together make so many calls (Lu et al. 2022a, section 3.4)."""
    if num_calls % 3:
        return [3] * (num_calls // 3) + [num_calls % 3]
    return [3] * (num_calls // 3 - 1) + [2, 1] if num_calls else []


def _sigma_at(t: float) -> Tensor:
    return torch.tensor(math.exp(-t), dtype=torch.float64)
