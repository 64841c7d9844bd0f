"""The timesteps and noise levels that diffusers' scheduler classes list, to the last digit.

The rounding matters: a list cut down to whole numbers decides which time a network is told. Our own runs use
`NoiseSchedule`, which has no such lists.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from enlarger.errors import InputError

Array = np.ndarray[Any, Any]
SPACINGS = ("linspace", "leading", "trailing")
TINY = 2.0**-24  # the least cumulative product of schedules whose noise levels must be finite
NOTHING = 1e-24  # what stands for a product of 0, at which the level would not be a number


def training_betas(kind: str, start: float, end: float, count: int, zero_terminal: bool = False) -> Tensor:
    """The betas (T,) float32 by the names that scheduler files use; InputError for another name."""
    makers: dict[str, Callable[[], Tensor]] = {
        "linear": lambda: torch.linspace(start, end, count, dtype=torch.float32),
        "scaled_linear": lambda: torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2,
        "squaredcos_cap_v2": lambda: _betas_of(lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2, count),
        "exp": lambda: _betas_of(lambda t: math.exp(-12 * t), count),
        "laplace": lambda: _betas_of(_laplace, count),
        "sigmoid": lambda: torch.sigmoid(torch.linspace(-6, 6, count)) * (end - start) + start,
    }
    if kind not in makers:
        raise InputError(f"beta_schedule is {kind!r}, expected one of {', '.join(makers)}")
    return rescaled_to_zero(makers[kind]()) if zero_terminal else makers[kind]()


def rescaled_to_zero(betas: Tensor) -> Tensor:
    """Betas whose cumulative product ends at 0 (Lin et al. 2023, algorithm 1)."""
    root = torch.cumprod(1 - betas, 0).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    product = root**2
    return 1 - torch.cat([product[:1], product[1:] / product[:-1]])


def level_of(product: Tensor) -> Tensor:
    """The noise level of a cumulative product (float64); that of 0 is very large, but a number."""
    product = product.double()
    product = torch.where(product == 0, torch.full_like(product, NOTHING), product)
    return ((1 - product) / product).sqrt()


def timesteps_of(count: int, steps: int, spacing: str, offset: int = 0) -> Array:
    """Falling training times, float64, as the classes that walk noise levels list them."""
    if spacing == "linspace":
        return np.linspace(0, count - 1, steps)[::-1].copy()
    if spacing == "leading":
        return (np.arange(0, steps) * (count // steps)).round()[::-1].astype(float) + offset
    if spacing == "trailing":
        return np.arange(count, 0, -count / steps).round() - 1
    raise InputError(f"timestep_spacing is {spacing!r}, expected one of {', '.join(SPACINGS)}")


def timesteps_of_one_more(count: int, steps: int, spacing: str, offset: int = 0, last: int | None = None) -> Array:
    """Whole times as DPM-Solver's classes list them: those of one step more, but its last; below `last` of them."""
    last = count if last is None else last
    if spacing == "linspace":
        return np.linspace(0, last - 1, steps + 1).round()[::-1][:-1].astype(np.int64)
    if spacing == "leading":
        listed = (np.arange(0, steps + 1) * (last // (steps + 1))).round()[::-1][:-1]
        return listed.astype(np.int64) + offset
    if spacing == "trailing":
        return np.arange(last, 0, -count / steps).round().astype(np.int64) - 1
    raise InputError(f"timestep_spacing is {spacing!r}, expected one of {', '.join(SPACINGS)}")


def distilled_timesteps(origin: Sequence[int], steps: int) -> Array:
    """`steps` times evenly chosen from those that a network was distilled for, falling."""
    falling = np.asarray(origin)[::-1].copy()
    return falling[np.floor(np.linspace(0, len(falling), steps, endpoint=False)).astype(np.int64)]


def interpolated_levels(timesteps: Array, levels: Tensor) -> Array:
    """The noise levels at fractional times, float64."""
    return np.interp(timesteps, np.arange(len(levels)), levels.numpy())


def time_of_level(sigma: Array, levels: Tensor) -> Array:
    """The fractional times of noise levels, linear over log(sigma), whose knots are float32.

    Knots of schedules that end at zero SNR may fall at the end: the last one that is not above a level counts.
    """
    knots = np.log(levels.numpy())
    logs = np.log(np.maximum(sigma, 1e-10))
    reached = knots[::-1] <= np.expand_dims(logs, -1)
    last = np.where(reached.any(-1), len(knots) - 1 - reached.argmax(-1), 0)
    low = np.minimum(last, len(knots) - 2)
    share = np.clip((knots[low] - logs) / (knots[low] - knots[low + 1]), 0, 1)
    return (1 - share) * low + share * (low + 1)


def sigma_curve(
    kind: str, most: float, least: float, steps: int, rho: float = 7.0, shares: Sequence[float] | None = None
) -> Array:
    """Noise levels between two ends: "karras" (Karras et al. 2022, equation 5), "exponential", "lu" (even over
    log(sigma), Lu et al. 2022) or "beta" (a Beta(0.6, 0.6) distribution's quantiles, Lee et al. 2024).

    `shares` of the way of one's own replace even ones.
    """
    ramp = np.linspace(0, 1, steps) if shares is None else np.asarray(shares, float)
    if kind == "karras":
        return (most ** (1 / rho) + ramp * (least ** (1 / rho) - most ** (1 / rho))) ** rho
    if kind == "exponential":
        return np.exp(np.linspace(math.log(most), math.log(least), len(ramp)))
    if kind == "lu":
        high, low = (float(np.log(np.float32(end))) for end in (most, least))  # they decide where times are cut
        return np.exp(high + ramp * (low - high))
    return least + _beta_quantiles(1 - ramp) * (most - least)


def flow_levels(
    count: int, steps: int, shift: float, *, whole: bool = False, own: Sequence[float] | None = None
) -> Array:
    """Levels in 0..1 of flow matching, shifted; `whole` starts at 1 itself, `own` replaces even ones."""
    if own is not None:
        return flow_shifted(np.asarray(own, float), shift)
    if whole:
        return flow_shifted(np.linspace(1, 1 / count, steps + 1)[:-1], shift)
    return np.flip(flow_shifted(1 - np.linspace(1, 1 / count, steps + 1), shift))[:-1].copy()


def flow_shifted(levels: Array, shift: float) -> Array:
    """Esser et al. 2024, equation 23."""
    return shift * levels / (1 + (shift - 1) * levels)


def stretched_to(levels: Array, last: float) -> Array:
    """Flow levels whose distances to 1 are scaled so that they end at `last`."""
    return 1 - (1 - levels) * ((1 - last) / (1 - levels[-1]))


def _beta_quantiles(shares: Array) -> Array:
    try:
        from scipy.stats import beta  # pyright: ignore[reportMissingTypeStubs, reportMissingImports, reportUnknownVariableType] - scipy has none
    except ImportError as error:
        raise InputError(
            "beta spacing needs scipy; `pip install scipy`, or take karras (use_karras_sigmas=True)"
        ) from error
    return np.array([float(beta.ppf(share, 0.6, 0.6)) for share in shares])  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType] - no stubs


def _betas_of(product: Callable[[float], float], count: int) -> Tensor:
    """Betas of a cumulative product over 0..1, at most 0.999."""
    pairs = [(i / count, (i + 1) / count) for i in range(count)]
    return torch.tensor([min(1 - product(after) / product(before), 0.999) for before, after in pairs])


def _laplace(t: float) -> float:
    noise = math.exp(-0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6))
    return math.sqrt(noise / (1 + noise))


def midway_times(levels: Tensor, lower: Tensor, trained: Tensor) -> Array:
    """The times of the levels halfway over log(sigma) between two, float32 throughout."""
    return time_of_level(levels.log().lerp(lower.log(), 0.5).exp().numpy(), trained)
