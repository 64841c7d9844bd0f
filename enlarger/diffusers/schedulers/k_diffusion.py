"""Schedulers whose latents are clean + sigma * noise, as k-diffusion's samplers walk them."""

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.types import Device

from enlarger.diffusers.call.arguments import ArgumentError
from enlarger.diffusers.schedulers.scheduling_utils import (
    CURVES,
    Defaults,
    Generators,
    Scheduler,
    StepOptions,
    StepResult,
    Timestep,
)
from enlarger.diffusion.estimates import variance_exploding
from enlarger.diffusion.listing import (
    Array,
    interpolated_levels,
    sigma_curve,
    time_of_level,
    timesteps_of,
)
from enlarger.diffusion.sample import Solver
from enlarger.diffusion.solvers import euler_ancestral, lms
from enlarger.diffusion.solvers.churn import Churn, euler_churned

BETAS = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
STABLE = BETAS | {"beta_start": 0.00085, "beta_end": 0.012}
NO_CURVES = dict.fromkeys(CURVES, False)
SPACING = {"timestep_spacing": "linspace", "steps_offset": 0}
OWN = "`timesteps` cannot be set with Karras, exponential or beta sigmas; leave them out"


class KDiffusionScheduler(Scheduler):
    """The base of those whose list is of noise levels."""

    MULTISTEP: ClassVar[bool] = False
    ESTIMATES: ClassVar[bool] = True
    ROUNDED: ClassVar[bool] = False  # whether Karras levels are told as whole times
    WHOLE: ClassVar[bool] = False  # whether a step refuses a whole number as its timestep
    outside = staticmethod(variance_exploding)

    @property
    def init_noise_sigma(self) -> Tensor:
        most = self.sigmas.max()
        return most if self.config.timestep_spacing in ("linspace", "trailing") else (most**2 + 1) ** 0.5

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """List the entries of a run of so many steps."""
        self._set(num_inference_steps, device)

    def _set(
        self, steps: int | None, device: Device, timesteps: Sequence[float] | None = None, train: int | None = None
    ) -> None:
        if (steps is None) == (timesteps is None):
            raise ArgumentError("give exactly one of `num_inference_steps` and `timesteps`")
        if timesteps is not None and any(self.own(name) for name in CURVES):
            raise ArgumentError(OWN)
        count = (steps or 0) if timesteps is None else len(timesteps)
        self.num_inference_steps = count
        times, levels = self._listed(count, timesteps, train)
        self._use(*self._entries(times, levels), device)

    def _listed(self, steps: int, own: Sequence[float] | None, train: int | None) -> tuple[Array, Array]:
        """The times and levels of the steps, float64, without the level that the last one ends at."""
        config = self.config
        try:
            times = timesteps_of(
                train or config.num_train_timesteps, steps, config.timestep_spacing, config.steps_offset
            )
        except ValueError as error:
            raise ArgumentError(str(error)) from error
        times = self._kept(times if own is None else np.asarray(own, float))
        levels = interpolated_levels(times, self._trained)
        return self._curved(times, levels, steps)

    def _kept(self, times: Array) -> Array:
        """Times in the precision that the class keeps them in."""
        return times.astype(np.float32)

    def _curved(self, times: Array, levels: Array, steps: int) -> tuple[Array, Array]:
        curve = next((name for name in CURVES if self.own(name)), None)
        if curve is None:
            return times, levels
        least, most = self.config.get("sigma_min"), self.config.get("sigma_max")
        ends = float(levels[0]) if most is None else most, float(levels[-1]) if least is None else least
        levels = sigma_curve(curve.split("_")[1], *ends, steps)
        found = time_of_level(levels, self._trained)
        return (found.round() if self.ROUNDED and curve == CURVES[0] else found), levels

    def _entries(self, times: Array, levels: Array) -> tuple[Tensor, Tensor]:
        """The lists as diffusers shows them."""
        return torch.from_numpy(times.astype(np.float32)), ended(levels)

    def _step_checked(self, timestep: Timestep) -> None:
        if isinstance(timestep, int) or (isinstance(timestep, Tensor) and not timestep.is_floating_point()):
            raise ArgumentError(
                f"{type(self).__name__}.step takes one of `scheduler.timesteps`, not a whole number such as those of "
                "enumerate(timesteps)"
            )


class EulerDiscreteScheduler(KDiffusionScheduler):
    """`euler`; the x2 upscaler's file names it."""

    DEFAULTS: ClassVar[Defaults] = {
        **BETAS,
        "trained_betas": None,
        "prediction_type": "epsilon",
        "interpolation_type": "linear",
        **NO_CURVES,
        "sigma_min": None,
        "sigma_max": None,
        "timestep_spacing": "linspace",
        "timestep_type": "discrete",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
        "final_sigmas_type": "zero",
    }
    PREDICTIONS: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction", "sample", "original_sample")

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """List the entries of a run of so many steps, or those of one's own; `sigmas` has one level more than steps."""
        if timesteps is not None and self._continuous:
            raise ArgumentError("`timesteps` cannot be set with continuous times of v-prediction; give `sigmas`")
        if sigmas is None:
            self._set(num_inference_steps, device, timesteps)
            return
        if num_inference_steps is not None or timesteps is not None:
            raise ArgumentError("give exactly one of `num_inference_steps`, `timesteps` and `sigmas`")
        self.num_inference_steps = len(sigmas) - 1
        levels = np.asarray(sigmas, np.float32)
        times = time_of_level(levels[:-1], self._trained)
        self._use(self._shown_times(times, levels[:-1]), torch.from_numpy(levels), device)

    @property
    def _continuous(self) -> bool:
        return self.config.timestep_type == "continuous" and self.config.prediction_type == "v_prediction"

    def _curved(self, times: Array, levels: Array, steps: int) -> tuple[Array, Array]:
        if self.config.interpolation_type == "log_linear":
            ends = math.log(self._trained[-1]), math.log(self._trained[0])
            levels = torch.linspace(*ends, steps + 1).exp().numpy()
        return super()._curved(times, levels, steps)

    def _entries(self, times: Array, levels: Array) -> tuple[Tensor, Tensor]:
        last = {"zero": 0.0, "sigma_min": float(self._trained[0])}.get(self.config.final_sigmas_type)
        if last is None:
            raise ArgumentError(f"final_sigmas_type is {self.config.final_sigmas_type!r}, expected zero or sigma_min")
        listed = ended(levels, last)
        return self._shown_times(times, listed[:-1].numpy()), listed

    def _shown_times(self, times: Array, levels: Array) -> Tensor:
        return torch.from_numpy((0.25 * np.log(levels) if self._continuous else times).astype(np.float32))

    def solver(self, index: int, options: StepOptions) -> Solver:
        return partial(euler_churned, churn=Churn(**options, steps=max(len(self.sigmas) - 1, 1)))

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = float("inf"), s_noise: float = 1.0, generator: Generators = None, return_dict: bool = True,
    ) -> StepResult:  # fmt: skip
        """The latents after a step, from the network's output."""
        self._step_checked(timestep)
        churn = {"amount": s_churn, "least": s_tmin, "most": s_tmax, "scale": s_noise}
        return self._step(model_output, timestep, sample, return_dict, generator, None, **churn)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v of clean latents; as in diffusers the place of a timestep in the list chooses the product."""
        return self._velocity(sample, noise, [self.index_for_timestep(t) for t in timesteps])


class EulerAncestralDiscreteScheduler(KDiffusionScheduler):
    """`euler_ancestral`: fresh noise at each step."""

    DEFAULTS: ClassVar[Defaults] = {
        **BETAS,
        "trained_betas": None,
        "prediction_type": "epsilon",
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    }
    PREDICTIONS: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction")

    def solver(self, index: int, options: StepOptions) -> Solver:
        return euler_ancestral

    def step(
        self,
        model_output: Tensor,
        timestep: Timestep,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> StepResult:
        """The latents after a step, from the network's output."""
        self._step_checked(timestep)
        return self._step(model_output, timestep, sample, return_dict, generator)


class LMSDiscreteScheduler(KDiffusionScheduler):
    """`lms`, of order 4."""

    DEFAULTS: ClassVar[Defaults] = {
        **BETAS,
        "trained_betas": None,
        **NO_CURVES,
        "prediction_type": "epsilon",
        **SPACING,
    }
    MULTISTEP: ClassVar[bool] = True

    def solver(self, index: int, options: StepOptions) -> Solver:
        before = [float(level) for level in self.levels()[:index].flip(0)[:3]]
        return partial(lms, order=int(options.get("order", 4)), before=before)

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, order: int = 4, return_dict: bool = True
    ) -> StepResult:
        """The latents after a step, from the network's output; `order` is that of the run's first step."""
        return self._step(model_output, timestep, sample, return_dict, order=order)


def ended(levels: Array, last: float = 0.0) -> Tensor:
    return torch.from_numpy(np.concatenate([levels, [last]]).astype(np.float32))
