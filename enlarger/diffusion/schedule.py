"""The noise levels a network was trained on, and those that solvers visit."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from enlarger.diffusion import listing
from enlarger.errors import InputError, Unsupported

TimestepSpacing = Literal["leading", "linspace", "trailing", "log_linear"]
SigmaCurve = Literal["karras", "exponential", "beta"]
TimestepGrid = Literal["fractional", "whole", "one_more"]
"""Where training times may lie: anywhere, at whole numbers, or as if for one step more, of which the last is left out
(DPM-Solver++ and UniPC in diffusers)."""
MAX_SHOWN_SIGMAS = 20  # in a message
TimestepRounding = Literal["none", "nearest", "down"]


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The training sigmas in rising order, one per integer time, as a float64 CPU tensor.

    A noisy latent is clean + sigma * noise throughout; sigma = sqrt((1 - a) / a) for the cumulative product a of the
    variance-preserving literature.
    """

    sigmas: Tensor  # (T,)

    @property
    def num_train_timesteps(self) -> int:
        return len(self.sigmas)

    def sigma(self, time: Tensor) -> Tensor:
        """The noise level at fractional times, linear between the training sigmas."""
        return _interpolate(time.double(), torch.arange(self.num_train_timesteps, dtype=torch.float64), self.sigmas)

    def time(self, sigma: Tensor) -> Tensor:
        """The fractional time of a noise level, the inverse of `sigma`; levels outside give the nearest end."""
        return _interpolate(sigma.double(), self.sigmas, torch.arange(self.num_train_timesteps, dtype=torch.float64))

    def time_by_log_sigma(self, sigma: Tensor) -> Tensor:
        """The same, linear between the logarithms of the training sigmas, in float32 as diffusers keeps them.

        Where diffusers cuts times down to whole ones, the last digit decides whether the first one is 999 or 998.
        """
        knots = self.sigmas.float().log().double()
        return _interpolate(
            sigma.float().double().log(), knots, torch.arange(self.num_train_timesteps, dtype=torch.float64)
        )

    def midpoint_sigma(self, sigma: Tensor, lower: Tensor) -> Tensor:
        """The noise level halfway in time, rounded to a whole time; halfway over log(sigma) where none is between."""
        midpoint = self.sigma(((self.time(sigma) + self.time(lower)) / 2).round())
        return midpoint if lower < midpoint < sigma else (sigma * lower).sqrt()

    def timesteps(
        self,
        steps: int,
        timestep_spacing: TimestepSpacing,
        steps_offset: int = 0,
        timestep_grid: TimestepGrid = "fractional",
    ) -> Tensor:
        """The falling training times that `steps` steps visit, by diffusers' three rules."""
        if not 1 <= steps <= self.num_train_timesteps:
            raise InputError(f"steps is {steps}, expected 1 to {self.num_train_timesteps}")
        points = steps + 1 if timestep_grid == "one_more" else steps
        if timestep_spacing == "leading":  # an offset may not lead past the last time
            stride = self.num_train_timesteps // points if points <= self.num_train_timesteps else steps / points
            timesteps = (torch.arange(points, dtype=torch.float64) * stride).flip(0)
            timesteps += min(steps_offset, self.num_train_timesteps - 1 - float(timesteps[0]))
        elif timestep_spacing == "trailing":
            timesteps = (
                self.num_train_timesteps - torch.arange(steps, dtype=torch.float64) * self.num_train_timesteps / steps
            ).round() - 1
        else:
            timesteps = torch.linspace(self.num_train_timesteps - 1, 0, points, dtype=torch.float64)
            if timestep_grid != "fractional" and points <= self.num_train_timesteps:
                timesteps = timesteps.round()  # else two would be one
        return timesteps[:steps]

    def sampling_sigmas(
        self,
        steps: int,
        timestep_spacing: TimestepSpacing = "linspace",
        steps_offset: int = 0,
        final_sigma: float = 0.0,
        sigma_curve: SigmaCurve | None = None,
        timestep_grid: TimestepGrid = "fractional",
    ) -> Tensor:
        """`steps` + 1 falling noise levels as a float64 CPU tensor; those not above `final_sigma`, the last, are cut.

        A `sigma_curve` spaces the levels anew between the first and last of `timestep_spacing`, on the grid "one_more"
        between the ends of the training sigmas. "log_linear" is the x2 upscaler's: it ends at the smallest training
        sigma, and `final_sigma` is ignored.
        """
        if timestep_spacing == "log_linear":
            return _exponential_sigmas(float(self.sigmas[-1]), float(self.sigmas[0]), steps + 1)
        sigmas = self.sigma(self.timesteps(steps, timestep_spacing, steps_offset, timestep_grid))
        if sigma_curve is not None:
            endpoints = self.sigmas.flip(0) if timestep_grid == "one_more" else sigmas
            sigma_max, sigma_min = float(endpoints[0]), float(endpoints[-1])
            sigmas = _curve_sigmas(sigma_curve, sigma_max, sigma_min, steps)
        return torch.cat([sigmas[sigmas > final_sigma], torch.tensor([final_sigma], dtype=torch.float64)])


@dataclass(frozen=True, eq=False)
class TimestepMap:
    """The timestep of a noise level: at the listed levels the listed one, elsewhere an interpolated one."""

    schedule: NoiseSchedule
    sigmas: Tensor = field(default_factory=lambda: torch.empty(0))
    timesteps: Tensor = field(default_factory=lambda: torch.empty(0))
    timestep_rounding: TimestepRounding = "none"  # of the interpolated ones

    def time(self, sigma: Tensor) -> Tensor:
        is_listed = (self.sigmas / sigma - 1).abs() < 1e-9
        if bool(is_listed.any()):
            return self.timesteps[is_listed][0]
        return round_timesteps(self.schedule.time_by_log_sigma(sigma), self.timestep_rounding)


def round_timesteps(timesteps: Tensor, timestep_rounding: TimestepRounding) -> Tensor:
    """Times as whole numbers, or as they are."""
    return {"none": timesteps, "nearest": timesteps.round(), "down": timesteps.floor()}[timestep_rounding]


def scaled_linear(
    beta_start: float, beta_end: float, num_train_timesteps: int = 1000, zero_terminal_snr: bool = False
) -> NoiseSchedule:
    """Betas whose square roots are evenly spaced (float32, as the checkpoints were trained)."""
    return from_betas(
        torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float32) ** 2, zero_terminal_snr
    )


def linear(
    beta_start: float, beta_end: float, num_train_timesteps: int = 1000, zero_terminal_snr: bool = False
) -> NoiseSchedule:
    """Evenly spaced betas."""
    return from_betas(torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float32), zero_terminal_snr)


def cosine(num_train_timesteps: int = 1000, zero_terminal_snr: bool = False) -> NoiseSchedule:
    """Nichol and Dhariwal 2021, equation 17, betas at most 0.999."""
    angle = (
        (torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps + 0.008) / 1.008 * math.pi / 2
    )
    alphas_cumprod = angle.cos() ** 2
    return from_betas((1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999).float(), zero_terminal_snr)


def from_betas(betas: Tensor, zero_terminal_snr: bool = False) -> NoiseSchedule:
    """The schedule of given betas; `zero_terminal_snr` rescales it to end in (almost) pure noise (Lin et al. 2023)."""
    alphas_cumprod = torch.cumprod(1 - betas, 0).double()
    if zero_terminal_snr:
        alphas_cumprod_sqrt = alphas_cumprod.sqrt()
        alphas_cumprod_sqrt = (
            (alphas_cumprod_sqrt - alphas_cumprod_sqrt[-1])
            * alphas_cumprod_sqrt[0]
            / (alphas_cumprod_sqrt[0] - alphas_cumprod_sqrt[-1])
        )
        alphas_cumprod = alphas_cumprod_sqrt**2
        alphas_cumprod[-1] = 2.0**-24  # keeps the last sigma finite, as the sigma samplers of diffusers do
    return NoiseSchedule(((1 - alphas_cumprod) / alphas_cumprod).sqrt())


def karras_sigmas(sigma_min: float, sigma_max: float, steps: int, rho: float = 7.0) -> Tensor:
    """Karras et al. 2022, equation 5, without the final zero."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


def check_sigmas(sigmas: Tensor) -> Tensor:
    """The sigmas themselves, if they are at least two strictly falling, finite, non-negative levels."""
    is_falling = len(sigmas) >= 2 and bool((sigmas[1:] < sigmas[:-1]).all()) and bool(torch.isfinite(sigmas).all())
    if not is_falling or sigmas[-1] < 0:
        shown = ", ".join(f"{float(sigma):.4g}" for sigma in sigmas[:MAX_SHOWN_SIGMAS])
        more = f" and {len(sigmas) - MAX_SHOWN_SIGMAS} more" if len(sigmas) > MAX_SHOWN_SIGMAS else ""
        raise Unsupported(f"sigmas must fall strictly to 0 or above, found {shown}{more}")
    return sigmas.double().cpu()


def _curve_sigmas(curve: SigmaCurve, sigma_max: float, sigma_min: float, steps: int) -> Tensor:
    if curve == "karras":
        return karras_sigmas(sigma_min, sigma_max, steps)
    if curve == "exponential":
        return _exponential_sigmas(sigma_max, sigma_min, steps)
    return torch.from_numpy(listing.sigma_curve(curve, sigma_max, sigma_min, steps))


def _exponential_sigmas(sigma_max: float, sigma_min: float, steps: int) -> Tensor:
    return torch.linspace(math.log(sigma_max), math.log(sigma_min), steps, dtype=torch.float64).exp()


def _interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear, constant outside; `knots` rise (NumPy's `interp`)."""
    right = torch.searchsorted(knots, x.contiguous()).clamp(1, len(knots) - 1)
    fraction = ((x - knots[right - 1]) / (knots[right] - knots[right - 1])).clamp(0, 1)
    return values[right - 1] + fraction * (values[right] - values[right - 1])
