"""Solvers that mix the slopes of the last steps."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Step, Steps
from enlarger.diffusion.solvers.levels import log_midpoint

Midpoint = Callable[[Tensor, Tensor], Tensor]  # of two levels, the one between them


def plms(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Steps:
    """Liu et al. 2022 without the Runge-Kutta start: Adams-Bashforth slopes, the first step corrected once."""
    slopes: list[Tensor] = []
    for sigma, lower in pairwise(sigmas):
        denoised = denoise(x, sigma)
        slopes = [(x - denoised) / sigma, *slopes[:3]]
        slope = adams_bashforth(slopes)
        if len(slopes) == 1 and len(sigmas) > 2:
            guess = x + slope * (lower - sigma)
            slope = (slope + (guess - denoise(guess, lower)) / lower) / 2
        x = x + slope * (lower - sigma)
        x = yield Step(x, denoised, lower)


def pndm(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, midpoint: Midpoint = log_midpoint) -> Steps:
    """Liu et al. 2022, algorithm 2: three Runge-Kutta steps of four calls each, then Adams-Bashforth slopes.

    `midpoint` says which level lies halfway; the paper's is halfway in training time (`NoiseSchedule.midpoint_sigma`).
    """
    slopes: list[Tensor] = []
    for sigma, lower in pairwise(sigmas):
        denoised = denoise(x, sigma)
        slopes = [(x - denoised) / sigma, *slopes[:3]]
        if len(slopes) < 4 and lower > 0:
            slope = _runge_kutta(denoise, x, slopes[0], sigma, midpoint(sigma, lower), lower)
        else:
            slope = adams_bashforth(slopes)
        x = x + slope * (lower - sigma)
        x = yield Step(x, denoised, lower)


def lms(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, order: int = 4, before: Sequence[float] = ()
) -> Steps:
    """Adams-Bashforth over uneven levels: the polynomial through up to four slopes, integrated (Katherine Crowson).

    `before` are levels above the first, newest first, that the polynomial counts though no slopes are known there, as
    diffusers does in a run that starts inside its list.
    """
    assert 1 <= order <= 4, f"order {order}, expected 1 to 4"
    past_sigmas = list(before)
    slopes: list[Tensor] = []
    for sigma, lower in pairwise(sigmas):
        denoised = denoise(x, sigma)
        past_sigmas, slopes = [float(sigma), *past_sigmas][:order], [(x - denoised) / sigma, *slopes][:order]
        coefficients = _lagrange_integrals(past_sigmas, float(sigma), float(lower))
        x = x + sum(coefficient * slope for coefficient, slope in zip(coefficients, slopes, strict=False))
        x = yield Step(x, denoised, lower)


def _runge_kutta(denoise: Denoise, x: Tensor, slope: Tensor, sigma: Tensor, midpoint: Tensor, lower: Tensor) -> Tensor:
    """The classical fourth-order slope from `sigma` to `lower`, given the one at `sigma`."""
    total, latest_slope = slope, slope
    for level, weight in ((midpoint, 2), (midpoint, 2), (lower, 1)):
        guess = x + latest_slope * (level - sigma)
        latest_slope = (guess - denoise(guess, level)) / level
        total = total + weight * latest_slope
    return total / 6


def adams_bashforth(slopes: Sequence[Tensor]) -> Tensor:
    """The slope of the next step from up to four past ones, newest first."""
    weights = {1: (1,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}
    mixed = slopes[0] * weights[len(slopes)][0]
    for weight, slope in zip(weights[len(slopes)][1:], slopes[1:], strict=True):
        mixed = mixed + weight * slope
    return mixed


def _lagrange_integrals(knots: Sequence[float], start: float, stop: float) -> list[float]:
    """Of each Lagrange polynomial over up to four knots; two Gauss points are exact to the third degree."""
    centre, half_width = (start + stop) / 2, (stop - start) / 2 / 3**0.5
    points, all_knots = (centre - half_width, centre + half_width), torch.tensor(knots, dtype=torch.float64)
    integrals: list[float] = []
    for i, knot in enumerate(knots):
        others = torch.cat([all_knots[:i], all_knots[i + 1 :]])
        values = [float(((point - others) / (knot - others)).prod()) for point in points]
        integrals.append(sum(values) * (stop - start) / 2)
    return integrals
