"""The noise levels a network was trained on, and the ladders down which solvers walk."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from enlarger.errors import InputError, Unsupported

Spacing = Literal["leading", "linspace", "trailing", "log_linear"]
Curve = Literal["karras", "exponential"]
Grid = Literal["fractional", "whole", "one_more"]
"""Where training times may lie: anywhere, at whole numbers, or as if for one step more, of which the last is left out
(DPM-Solver++ and UniPC in diffusers)."""
Rounding = Literal["none", "nearest", "down"]


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The training sigmas in rising order, one per integer time, as a float64 CPU tensor.

    A noisy latent is clean + sigma * noise throughout; sigma = sqrt((1 - a) / a) for the cumulative product a of the
    variance-preserving literature.
    """

    sigmas: Tensor  # (T,)

    @property
    def count(self) -> int:
        return len(self.sigmas)

    def sigma(self, time: Tensor) -> Tensor:
        """The noise level at fractional times, linear between the training sigmas."""
        return _interpolate(time.double(), torch.arange(self.count, dtype=torch.float64), self.sigmas)

    def time(self, sigma: Tensor) -> Tensor:
        """The fractional time of a noise level, the inverse of `sigma`; levels outside give the nearest end."""
        return _interpolate(sigma.double(), self.sigmas, torch.arange(self.count, dtype=torch.float64))

    def log_time(self, sigma: Tensor) -> Tensor:
        """The same, linear between the logarithms of the training sigmas, in float32 as diffusers keeps them.

        Where diffusers cuts times down to whole ones, the last digit decides whether the first one is 999 or 998.
        """
        knots = self.sigmas.float().log().double()
        return _interpolate(sigma.float().double().log(), knots, torch.arange(self.count, dtype=torch.float64))

    def middle(self, sigma: Tensor, lower: Tensor) -> Tensor:
        """The noise level halfway in time, rounded to a whole time; halfway over log(sigma) where none is between."""
        found = self.sigma(((self.time(sigma) + self.time(lower)) / 2).round())
        return found if lower < found < sigma else (sigma * lower).sqrt()

    def times(self, steps: int, spacing: Spacing, offset: int = 0, grid: Grid = "fractional") -> Tensor:
        """The falling training times that `steps` steps visit, by diffusers' three rules."""
        if not 1 <= steps <= self.count:
            raise InputError(f"steps is {steps}, expected 1 to {self.count}")
        points = steps + 1 if grid == "one_more" else steps
        if spacing == "leading":
            times = (torch.arange(points, dtype=torch.float64) * (self.count // points)).flip(0) + offset
        elif spacing == "trailing":
            times = (self.count - torch.arange(steps, dtype=torch.float64) * self.count / steps).round() - 1
        else:
            times = torch.linspace(self.count - 1, 0, points, dtype=torch.float64)
            times = times if grid == "fractional" else times.round()
        return times[:steps]

    def ladder(
        self, steps: int, spacing: Spacing = "linspace", offset: int = 0, last: float = 0.0, curve: Curve | None = None,
        grid: Grid = "fractional",
    ) -> Tensor:  # fmt: skip
        """`steps` + 1 falling noise levels as a float64 CPU tensor, `last` at its end; levels not above it are cut.

        A `curve` spaces the levels anew between the first and the last that `spacing` visits, on the grid "one_more"
        between the ends of the training sigmas. "log_linear" is the x2 upscaler's: it ends at the smallest training
        sigma, and `last` is ignored.
        """
        if spacing == "log_linear":
            return _geometric(float(self.sigmas[-1]), float(self.sigmas[0]), steps + 1)
        levels = self.sigma(self.times(steps, spacing, offset, grid))
        if curve is not None:
            ends = self.sigmas.flip(0) if grid == "one_more" else levels
            most, least = float(ends[0]), float(ends[-1])
            levels = karras(least, most, steps) if curve == "karras" else _geometric(most, least, steps)
        return torch.cat([levels[levels > last], torch.tensor([last], dtype=torch.float64)])


@dataclass(frozen=True, eq=False)
class Clock:
    """What a network is told of a noise level: at a ladder's levels the times listed, elsewhere interpolated ones."""

    schedule: NoiseSchedule
    levels: Tensor = field(default_factory=lambda: torch.empty(0))
    times: Tensor = field(default_factory=lambda: torch.empty(0))
    rounding: Rounding = "none"  # of the interpolated ones

    def time(self, sigma: Tensor) -> Tensor:
        listed = (self.levels / sigma - 1).abs() < 1e-9
        if bool(listed.any()):
            return self.times[listed][0]
        return rounded(self.schedule.log_time(sigma), self.rounding)


def rounded(times: Tensor, rounding: Rounding) -> Tensor:
    """Times as whole numbers, or as they are."""
    return {"none": times, "nearest": times.round(), "down": times.floor()}[rounding]


def scaled_linear(start: float, end: float, count: int = 1000, zero_terminal: bool = False) -> NoiseSchedule:
    """Betas whose square roots are evenly spaced (float32, as the checkpoints were trained)."""
    return from_betas(torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2, zero_terminal)


def linear(start: float, end: float, count: int = 1000, zero_terminal: bool = False) -> NoiseSchedule:
    """Evenly spaced betas."""
    return from_betas(torch.linspace(start, end, count, dtype=torch.float32), zero_terminal)


def cosine(count: int = 1000, zero_terminal: bool = False) -> NoiseSchedule:
    """Nichol and Dhariwal 2021, equation 17, betas at most 0.999."""
    angle = (torch.arange(count + 1, dtype=torch.float64) / count + 0.008) / 1.008 * math.pi / 2
    product = angle.cos() ** 2
    return from_betas((1 - product[1:] / product[:-1]).clamp(max=0.999).float(), zero_terminal)


def from_betas(betas: Tensor, zero_terminal: bool = False) -> NoiseSchedule:
    """The schedule of given betas; `zero_terminal` rescales it to end in (almost) pure noise (Lin et al. 2023)."""
    product = torch.cumprod(1 - betas, 0).double()
    if zero_terminal:
        root = product.sqrt()
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        product = root**2
        product[-1] = 2.0**-24  # keeps the last sigma finite, as the sigma samplers of diffusers do
    return NoiseSchedule(((1 - product) / product).sqrt())


def karras(least: float, most: float, steps: int, rho: float = 7.0) -> Tensor:
    """Karras et al. 2022, equation 5, without the final zero."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return (most ** (1 / rho) + ramp * (least ** (1 / rho) - most ** (1 / rho))) ** rho


def check_ladder(sigmas: Tensor) -> Tensor:
    """The ladder itself, if it is one: at least two strictly falling, finite, non-negative levels."""
    falls = len(sigmas) >= 2 and bool((sigmas[1:] < sigmas[:-1]).all()) and bool(torch.isfinite(sigmas).all())
    if not falls or sigmas[-1] < 0:
        raise Unsupported(f"sigmas must fall strictly to 0 or above, found {[round(float(s), 4) for s in sigmas]}")
    return sigmas.double().cpu()


def _geometric(most: float, least: float, count: int) -> Tensor:
    return torch.linspace(math.log(most), math.log(least), count, dtype=torch.float64).exp()


def _interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear, constant outside; `knots` rise (NumPy's `interp`)."""
    right = torch.searchsorted(knots, x.contiguous()).clamp(1, len(knots) - 1)
    share = ((x - knots[right - 1]) / (knots[right] - knots[right - 1])).clamp(0, 1)
    return values[right - 1] + share * (values[right] - values[right - 1])
