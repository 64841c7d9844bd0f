"""DPM-Solver++: exponential integration of the clean estimate, over t = -log(sigma) (Lu et al. 2022b)."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Step
from enlarger.diffusion.solvers.levels import halfway, split_level

FEW = 15  # diffusers takes lower orders at the end of ladders of fewer steps


def dpmpp_2m(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, heun: bool = False, eased: float | None = None
) -> Iterator[Step]:
    """DPM-Solver++(2M), Lu et al. 2022b, algorithm 2. For `heun` and `eased` see `dpmpp_3m_sde`."""
    return _multistep(denoise, x, sigmas, noise, (2, 0.0, heun, eased))


def dpmpp_2m_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0, heun: bool = False,
    eased: float | None = None,
) -> Iterator[Step]:  # fmt: skip
    """SDE-DPM-Solver++(2M); eta 0 is the deterministic solver. Independent noise at each step."""
    return _multistep(denoise, x, sigmas, noise, (2, eta, heun, eased))


def dpmpp_3m_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0, heun: bool = True,
    eased: float | None = None,
) -> Iterator[Step]:  # fmt: skip
    """The same with three estimates, of which the quadratic term has half its weight, as in the authors' code.

    Where two are there, `heun` weighs their difference as the exponential integral says, else as the midpoint rule. A
    step to 0 is always of first order; a ladder of fewer than 15 steps that ends at `eased` or below also has an order
    fewer at the step before and ends with first order, as in diffusers.
    """
    return _multistep(denoise, x, sigmas, noise, (3, eta, heun, eased))


def dpmpp_2s_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0
) -> Iterator[Step]:  # fmt: skip
    """DPM-Solver++(2S), Lu et al. 2022b, algorithm 1, to below the next level, then fresh noise up to it."""
    for sigma, lower in pairwise(sigmas):
        clean = denoise(x, sigma)
        down, up = split_level(sigma, lower, eta)
        target = clean
        if down > 0:
            middle = halfway(sigma, down)
            target = denoise(_blend(x, clean, sigma, middle), middle)
        x = _blend(x, target, sigma, down)
        if eta and lower > 0:
            x = x + noise(x) * up
        yield Step(x, clean, lower)


def dpmpp_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, eta: float = 1.0) -> Iterator[Step]:
    """SDE-DPM-Solver++(2S): noise also on the way to the level halfway. Independent noise at each draw."""
    for sigma, lower in pairwise(sigmas):
        clean = target = denoise(x, sigma)
        if lower > 0:
            middle = halfway(sigma, lower)
            target = denoise(_jump(x, clean, sigma, middle, eta, noise), middle)
        x = _jump(x, target, sigma, lower, eta, noise)
        yield Step(x, clean, lower)


def dpmpp_singlestep(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, order: int = 2, eta: float = 0.0, heun: bool = False,
    lower_final: bool = True,
) -> Iterator[Step]:  # fmt: skip
    """DPM-Solver++(2S) and (3S) whose inner levels are rungs: groups of `order` steps, each from the group's start.

    With `lower_final`, and on every ladder to 0 or of a length that is no multiple of the order, the last steps are of
    lower order, as in diffusers.
    """
    places = _places(len(sigmas) - 1, order, lower_final or float(sigmas[-1]) == 0)
    places[-1] = places[-1] if sigmas[-1] > 0 else 1
    start, past = x, list[tuple[Tensor, Tensor]]()  # of the group, oldest first
    for (sigma, lower), place in zip(pairwise(sigmas), places, strict=True):
        clean = denoise(x, sigma)
        start, past = (x, [(sigma, clean)]) if place == 1 else (start, [*past, (sigma, clean)])
        third = place == 3
        x = _across(start, past if heun or not third else past[::2], lower, eta, heun or third)
        if eta and lower > 0:
            x = x + noise(x) * _fresh(past[0][0], lower, eta)
        yield Step(x, clean, lower)


def _multistep(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, rule: tuple[int, float, bool, float | None]
) -> Iterator[Step]:  # fmt: skip
    """DPM-Solver++ from the clean estimates of the last steps; the rule is (order, eta, heun, eased)."""
    order, eta, heun, eased = rule
    count = len(sigmas) - 1
    low_end = eased is not None and count < FEW and float(sigmas[-1]) <= eased
    past: list[tuple[Tensor, Tensor]] = []  # newest first
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        clean = denoise(x, sigma)
        past = [(sigma, clean), *past][:order]
        used = past[: count - i] if low_end else past
        x = _across(x, used if lower > 0 else used[:1], lower, eta, heun, quadratic=0.5)
        if eta and lower > 0:
            x = x + noise(x) * _fresh(sigma, lower, eta)
        yield Step(x, clean, lower)


def _across(
    x: Tensor, known: Sequence[tuple[Tensor, Tensor]], lower: Tensor, eta: float, heun: bool, quadratic: float = 1.0
) -> Tensor:  # fmt: skip
    """x at the first level known carried to `lower` by the polynomial through up to three clean estimates.

    The polynomial is over u, the share of the way over log(sigma); each power of u has its exponential integral, but
    the midpoint rule stands for that of the first where two are known and not `heun`.
    """
    (sigma, clean), *more = known
    h = sigma.log() - lower.log()
    long = h * (1 + eta)
    gain = -torch.expm1(-long)
    x = (lower / sigma) * torch.exp(-eta * h if eta else torch.zeros_like(h)) * x + gain * clean
    rates = [(other - clean) / _share(sigma, level, h) for level, other in more]
    bend = 1 - gain / long
    if len(rates) == 1:
        x = x + (bend if heun else gain / 2) * rates[0]
    if len(rates) == 2:
        near, far = (_share(sigma, level, h) for level, _ in more)
        second = (rates[0] - rates[1]) / (near - far)
        x = x + bend * (rates[0] - near * second) + quadratic * (1 - 2 * bend / long) * second
    return x


def _share(sigma: Tensor, level: Tensor, h: Tensor) -> Tensor:
    """Where a level lies on the way of length h from sigma over log(sigma); below 0 if it is behind."""
    return (sigma.log() - level.log()) / h


def _fresh(sigma: Tensor, lower: Tensor, eta: float) -> Tensor:
    """How much noise a stochastic step adds."""
    return lower * torch.sqrt(-torch.expm1(-2 * eta * (sigma.log() - lower.log())))


def _blend(x: Tensor, clean: Tensor, sigma: Tensor, lower: Tensor) -> Tensor:
    """x carried to a lower level towards a clean estimate."""
    return lower / sigma * x + (1 - lower / sigma) * clean


def _jump(x: Tensor, clean: Tensor, sigma: Tensor, lower: Tensor, eta: float, noise: Noise) -> Tensor:
    """`_blend` to below a level, then fresh noise up to it."""
    down, up = split_level(sigma, lower, eta)
    x = _blend(x, clean, sigma, down)
    return x + noise(x) * up if eta and lower > 0 else x


def _places(count: int, order: int, lower_final: bool) -> list[int]:
    """For each step its place in its group, from 1: the order it is taken with."""
    whole, rest = divmod(count, order)
    group = [*range(1, order + 1)]
    if rest:
        return group * whole + group[:rest]
    return group * (whole - 1) + [*group[:-1], 1] if lower_final else group * whole
