"""DPM-Solver++: exponential integration of the denoised estimate, over t = -log(sigma) (Lu et al. 2022b)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Step, Steps
from enlarger.diffusion.solvers.levels import ancestral_step, log_midpoint

LOWER_ORDER_MAX_STEPS = 15  # diffusers takes lower orders at the end of fewer steps


def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    heun: bool = False,
    lower_order_final_sigma: float | None = None,
) -> Steps:
    """DPM-Solver++(2M), Lu et al. 2022b, algorithm 2. For the options see `dpmpp_3m_sde`."""
    return _multistep(denoise, x, sigmas, noise, (2, 0.0, heun, lower_order_final_sigma))


def dpmpp_2m_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0, heun: bool = False,
    lower_order_final_sigma: float | None = None,
) -> Steps:  # fmt: skip
    """SDE-DPM-Solver++(2M); eta 0 is the deterministic solver. Independent noise at each step."""
    return _multistep(denoise, x, sigmas, noise, (2, eta, heun, lower_order_final_sigma))


def dpmpp_3m_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0, heun: bool = True,
    lower_order_final_sigma: float | None = None,
) -> Steps:  # fmt: skip
    """The same with three estimates, of which the quadratic term has half its weight, as in the authors' code.

    Where two are there, `heun` weighs their difference as the exponential integral says, else as the midpoint rule. A
    step to 0 is always of first order; with fewer than 15 steps, sigmas that end at `lower_order_final_sigma` or below
    also have an order fewer at the step before and end with first order, as in diffusers.
    """
    return _multistep(denoise, x, sigmas, noise, (3, eta, heun, lower_order_final_sigma))


def dpmpp_2s_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0) -> Steps:
    """DPM-Solver++(2S), Lu et al. 2022b, algorithm 1, to below the next level, then fresh noise up to it."""
    for sigma, lower in pairwise(sigmas):
        denoised = denoise(x, sigma)
        sigma_down, sigma_up = ancestral_step(sigma, lower, eta)
        denoised_target = denoised
        if sigma_down > 0:
            midpoint = log_midpoint(sigma, sigma_down)
            denoised_target = denoise(_first_order_update(x, denoised, sigma, midpoint), midpoint)
        x = _first_order_update(x, denoised_target, sigma, sigma_down)
        if eta and lower > 0:
            x = x + noise(x) * sigma_up
        x = yield Step(x, denoised, lower)


def dpmpp_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0) -> Steps:
    """SDE-DPM-Solver++(2S): noise also on the way to the level halfway. Independent noise at each draw."""
    for sigma, lower in pairwise(sigmas):
        denoised = denoised_target = denoise(x, sigma)
        if lower > 0:
            midpoint = log_midpoint(sigma, lower)
            denoised_target = denoise(_ancestral_update(x, denoised, sigma, midpoint, eta, noise), midpoint)
        x = _ancestral_update(x, denoised_target, sigma, lower, eta, noise)
        x = yield Step(x, denoised, lower)


def dpmpp_singlestep(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, order: int = 2, eta: float = 0.0, heun: bool = False,
    lower_order_final: bool = True,
) -> Steps:  # fmt: skip
    """DPM-Solver++(2S) and (3S) with `sigmas` as inner levels: groups of `order` steps, each from the group's start.

    With `lower_order_final`, and always where sigmas end at 0 or the steps are no multiple of the
    order, the last steps are of lower order, as in diffusers.
    """
    step_orders = _singlestep_orders(len(sigmas) - 1, order, lower_order_final or float(sigmas[-1]) == 0)
    step_orders[-1] = step_orders[-1] if sigmas[-1] > 0 else 1
    x_start, history = x, list[tuple[Tensor, Tensor]]()  # of the group, oldest first
    for (sigma, lower), step_order in zip(pairwise(sigmas), step_orders, strict=True):
        denoised = denoise(x, sigma)
        x_start, history = (x, [(sigma, denoised)]) if step_order == 1 else (x_start, [*history, (sigma, denoised)])
        is_third_order = step_order == 3
        x = _multistep_update(
            x_start, history if heun or not is_third_order else history[::2], lower, eta, heun or is_third_order
        )
        if eta and lower > 0:
            x = x + noise(x) * _sde_noise_sigma(history[0][0], lower, eta)
        x = yield Step(x, denoised, lower)


def _multistep(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, options: tuple[int, float, bool, float | None]
) -> Steps:
    """DPM-Solver++ from the denoised estimates of the last steps."""
    order, eta, heun, lower_order_final_sigma = options
    num_steps = len(sigmas) - 1
    lowers_order = (
        lower_order_final_sigma is not None
        and num_steps < LOWER_ORDER_MAX_STEPS
        and float(sigmas[-1]) <= lower_order_final_sigma
    )
    history: list[tuple[Tensor, Tensor]] = []  # newest first
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        history = [(sigma, denoised), *history][:order]
        used_history = history[: num_steps - i] if lowers_order else history
        x = _multistep_update(
            x, used_history if lower > 0 else used_history[:1], lower, eta, heun, quadratic_weight=0.5
        )
        if eta and lower > 0:
            x = x + noise(x) * _sde_noise_sigma(sigma, lower, eta)
        x = yield Step(x, denoised, lower)


def _multistep_update(
    x: Tensor,
    history: Sequence[tuple[Tensor, Tensor]],
    lower: Tensor,
    eta: float,
    heun: bool,
    quadratic_weight: float = 1.0,
) -> Tensor:
    """x at the first level known carried to `lower` by the polynomial through up to three denoised estimates.

    The polynomial is over u, the share of the way over log(sigma); each power of u has its exponential integral, but
    the midpoint rule stands for that of the first where two are known and not `heun`.
    """
    (sigma, denoised), *older = history
    h = sigma.log() - lower.log()
    h_eta = h * (1 + eta)
    phi_1 = -torch.expm1(-h_eta)
    x = (lower / sigma) * torch.exp(-eta * h if eta else torch.zeros_like(h)) * x + phi_1 * denoised
    rates = [(other - denoised) / _log_sigma_fraction(sigma, level, h) for level, other in older]
    phi_2 = 1 - phi_1 / h_eta
    if len(rates) == 1:
        x = x + (phi_2 if heun else phi_1 / 2) * rates[0]
    if len(rates) == 2:
        r_0, r_1 = (_log_sigma_fraction(sigma, level, h) for level, _ in older)
        second = (rates[0] - rates[1]) / (r_0 - r_1)
        x = x + phi_2 * (rates[0] - r_0 * second) + quadratic_weight * (1 - 2 * phi_2 / h_eta) * second
    return x


def _log_sigma_fraction(sigma: Tensor, level: Tensor, h: Tensor) -> Tensor:
    """Where a level lies on the way of length h from sigma over log(sigma); below 0 if it is behind."""
    return (sigma.log() - level.log()) / h


def _sde_noise_sigma(sigma: Tensor, lower: Tensor, eta: float) -> Tensor:
    """How much noise a stochastic step adds."""
    return lower * torch.sqrt(-torch.expm1(-2 * eta * (sigma.log() - lower.log())))


def _first_order_update(x: Tensor, denoised: Tensor, sigma: Tensor, lower: Tensor) -> Tensor:
    """x carried to a lower level towards a denoised estimate."""
    return lower / sigma * x + (1 - lower / sigma) * denoised


def _ancestral_update(x: Tensor, denoised: Tensor, sigma: Tensor, lower: Tensor, eta: float, noise: Noise) -> Tensor:
    """`_first_order_update` to below a level, then fresh noise up to it."""
    sigma_down, sigma_up = ancestral_step(sigma, lower, eta)
    x = _first_order_update(x, denoised, sigma, sigma_down)
    return x + noise(x) * sigma_up if eta and lower > 0 else x


def _singlestep_orders(num_steps: int, order: int, lower_order_final: bool) -> list[int]:
    """For each step its place in its group, from 1: the order it is taken with."""
    whole, remainder = divmod(num_steps, order)
    group = [*range(1, order + 1)]
    if remainder:
        return group * whole + group[:remainder]
    return group * (whole - 1) + [*group[:-1], 1] if lower_order_final else group * whole
