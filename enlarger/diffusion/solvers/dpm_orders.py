"""DPM-Solver, DPM-Solver++ and DEIS with the order of every step given, multistep and singlestep.

Both integrate an estimate exactly over log(sigma), by the polynomial through the last ones: the denoised estimate
(DPM-Solver++, Lu et al. 2022b) or the noise estimate (DPM-Solver, Lu et al. 2022a; DEIS, Zhang and Chen 2023, whose
polynomial over log(rho) is the same). diffusers' classes lower the order near the end of a run by rules of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Step, Steps

Known = Sequence[tuple[Tensor, Tensor]]  # levels and estimates; the first is where the latents are


@dataclass(frozen=True)
class Integration:
    """How a step integrates: `eta` 1 is the stochastic form; `heun` weighs a single difference of estimates by its
    integral, else the midpoint rule does; `quadratic` weighs the second difference, 1 by its integral.

    `sign_error` subtracts the second difference once more, as diffusers' third-order "sde-dpmsolver++" does.
    """

    of_noise: bool = False
    eta: float = 0.0
    heun: bool = False
    quadratic: float = 0.5
    sign_error: bool = False

    def __call__(self, x: Tensor, known: Known, lower: Tensor) -> Tensor:
        """The latents at the first level known carried to `lower`, without fresh noise."""
        return self._of_noise(x, known, lower) if self.of_noise else self._of_denoised(x, known, lower)

    def fresh(self, sigma: Tensor, lower: Tensor) -> Tensor:
        """How much noise the step adds."""
        if self.of_noise:
            return (sigma**2 - lower**2).sqrt()
        return lower * torch.sqrt(-torch.expm1(2 * self.eta * (lower / sigma).log()))

    def estimate(self, x: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
        """What is integrated."""
        return (x - denoised) / sigma if self.of_noise else denoised

    def _of_denoised(self, x: Tensor, known: Known, lower: Tensor) -> Tensor:
        (sigma, value), *older = known
        h = (sigma / lower).log()
        length = h * (1 + self.eta)
        gain = -torch.expm1(-length)
        kept = (lower / sigma) ** (1 + self.eta)
        moved = kept * x + gain * value
        if not older:
            return moved
        shares = [(sigma / level).log() / h for level, _ in older]
        rates = [(other - value) / share for share, (_, other) in zip(shares, older, strict=True)]
        first = 1 - gain / length
        if len(rates) == 1:
            return moved + (first if self.heun else gain / 2) * rates[0]
        second = (rates[0] - rates[1]) / (shares[0] - shares[1])
        weight = self.quadratic * (1 - 2 * first / length) - float(self.sign_error)
        return moved + first * (rates[0] - shares[0] * second) + weight * second

    def _of_noise(self, x: Tensor, known: Known, lower: Tensor) -> Tensor:
        (sigma, value), *older = known
        end, factor = (lower / sigma).log(), 1 + self.eta
        zeroth = lower - sigma  # the integrals of 1, log(level / sigma) and its square over the level
        moved = x + factor * zeroth * value
        if not older:
            return moved
        places = [(level / sigma).log() for level, _ in older]
        rates = [(other - value) / place for place, (_, other) in zip(places, older, strict=True)]
        first = lower * (end - 1) + sigma
        if len(rates) == 1:
            return moved + factor * (first if self.heun else zeroth * end / 2) * rates[0]
        second = (rates[0] - rates[1]) / (places[0] - places[1])
        square = lower * (end**2 - 2 * end + 2) - 2 * sigma
        return moved + factor * (first * (rates[0] - places[0] * second) + self.quadratic * square * second)


def dpm_multistep(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    orders: Sequence[int],
    integration: Integration = Integration(),
) -> Steps:
    """Each step by the estimates of the last ones, as many as its order (1 to 3) says and as there are."""
    past: list[tuple[Tensor, Tensor]] = []  # newest first
    for order, (sigma, lower) in zip(orders, pairwise(sigmas), strict=True):
        denoised = denoise(x, sigma)
        past = [(sigma, integration.estimate(x, denoised, sigma)), *past[:2]]
        x = integration(x, past[:order], lower)
        if integration.eta and lower > 0:
            x = x + noise(x) * integration.fresh(sigma, lower)
        x = yield Step(x, denoised, lower)


def dpm_singlestep(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    orders: Sequence[int],
    integration: Integration = Integration(quadratic=1.0),
) -> Steps:
    """Groups of steps, each carried from the group's start; an order of 1 starts a group.

    A third-order step without `heun` leaves out the estimate in the middle.
    """
    start, past = x, list[tuple[Tensor, Tensor]]()  # of the group, oldest first
    third = Integration(**{**vars(integration), "heun": True})
    for order, (sigma, lower) in zip(orders, pairwise(sigmas), strict=True):
        denoised = denoise(x, sigma)
        found = (sigma, integration.estimate(x, denoised, sigma))
        start, past = (x, [found]) if order == 1 else (start, [*past, found])
        if order < 3:
            x = integration(start, past, lower)
        else:
            x = third(start, past if integration.heun else past[::2], lower)
        if integration.eta and lower > 0:
            x = x + noise(x) * integration.fresh(past[0][0], lower)
        x = yield Step(x, denoised, lower)


def deis(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, orders: Sequence[int]) -> Steps:
    """DEIS (Zhang and Chen 2023): the polynomial of the noise estimates over log(sigma), integrated exactly."""
    return dpm_multistep(denoise, x, sigmas, noise, orders, Integration(of_noise=True, heun=True, quadratic=1.0))


def multistep_orders(
    count: int, order: int, lower_final: bool, euler_final: bool = False, few: int = 15
) -> tuple[int, ...]:
    """The order of each step of a run of `count`: lower ones at the end of a run of fewer than `few` steps, or the last
    one alone with `euler_final`; before them as many estimates as there are."""
    orders = [order] * count
    if lower_final and count < few:
        orders[-2:] = [min(order, left) for left in (2, 1)][-min(count, 2) :]
    if euler_final:
        orders[-1] = 1
    return tuple(orders)


def singlestep_orders(count: int, order: int, lower_final: bool, euler_final: bool = False) -> tuple[int, ...]:
    """Groups 1, 2 ... `order`; with `lower_final` the last group is shorter, or ends with first order."""
    whole, rest = divmod(count, order)
    group = list(range(1, order + 1))
    orders = group * whole + group[:rest]
    if lower_final and not rest and order > 1:
        orders[-1] = 1
    if euler_final:
        orders[-1] = 1
    return tuple(orders)
