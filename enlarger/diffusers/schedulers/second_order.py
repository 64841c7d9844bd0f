"""Schedulers whose steps call the network twice: k-diffusion's Heun, DPM-Solver-2 and DPM-Solver++ SDE."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.types import Device

from enlarger.diffusers.schedulers.k_diffusion import NO_CURVES, SPACING, STABLE, KDiffusionScheduler, ended
from enlarger.diffusers.schedulers.scheduling_utils import Defaults, Generators, StepOptions, StepResult, Timestep
from enlarger.diffusion.brownian import BrownianNoise
from enlarger.diffusion.listing import Array, midway_times, time_of_level
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Solver
from enlarger.diffusion.solvers import ancestral_step, dpm2, dpm2_ancestral, dpmpp_sde, heun
from enlarger.diffusion.solvers.levels import log_midpoint
from enlarger.diffusion.stepper import Advance, Estimate


class SecondOrderScheduler(KDiffusionScheduler):
    """The base of those that call the network twice per step."""

    order: ClassVar[int] = 2

    def set_timesteps(
        self, num_inference_steps: int, device: Device = None, num_train_timesteps: int | None = None
    ) -> None:
        """List the entries of a run of so many steps: two for each but the last."""
        self._set(num_inference_steps, device, train=num_train_timesteps)

    def _list_training(self) -> None:
        self._set(self.config.num_train_timesteps, None)
        self.num_inference_steps = None if "timestep_spacing" not in self.DEFAULTS else self.num_inference_steps

    @property
    def state_in_first_order(self) -> bool:
        return self._awaited is None


class HeunDiscreteScheduler(SecondOrderScheduler):
    """`heun`: two calls of the network per step."""

    DEFAULTS: ClassVar[Defaults] = {
        **STABLE,
        "trained_betas": None,
        "prediction_type": "epsilon",
        **NO_CURVES,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
    }

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        num_train_timesteps: int | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """List the entries of a run of so many steps, or of timesteps of one's own."""
        self._set(num_inference_steps, device, timesteps, num_train_timesteps)

    def _entries(self, times: Array, levels: Array) -> tuple[Tensor, Tensor]:
        listed, shown_times = ended(levels), torch.from_numpy(times.astype(np.float32))
        doubled = torch.cat([listed[:1], listed[1:-1].repeat_interleave(2), listed[-1:]])
        return torch.cat([shown_times[:1], shown_times[1:].repeat_interleave(2)]), doubled

    def solver(self, index: int, options: StepOptions) -> Solver:
        return heun

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> StepResult:
        """The latents after half a step, from the network's output."""
        return self._step(model_output, timestep, sample, return_dict)


class KDPM2DiscreteScheduler(SecondOrderScheduler):
    """`dpm2`: two calls of the network per step."""

    DEFAULTS: ClassVar[Defaults] = {
        **STABLE,
        "trained_betas": None,
        **NO_CURVES,
        "prediction_type": "epsilon",
        **SPACING,
    }
    PREDICTIONS: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction")
    ROUNDED: ClassVar[bool] = True

    def _entries(self, times: Array, levels: Array) -> tuple[Tensor, Tensor]:
        listed, shown_times = ended(levels), torch.from_numpy(times)
        between = torch.from_numpy(midway_times(listed[:-2], self._next(listed), self._trained)).to(shown_times.dtype)
        interleaved = torch.stack([between, shown_times[1:]], -1).flatten()
        return torch.cat([shown_times[:1], interleaved]), torch.cat(
            [listed[:1], listed[1:].repeat_interleave(2), listed[-1:]]
        )

    def _next(self, listed: Tensor) -> Tensor:
        """The level that each step but the last goes down to."""
        return listed[1:-1]

    def solver(self, index: int, options: StepOptions) -> Solver:
        return dpm2

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> StepResult:
        """The latents after half a step, from the network's output."""
        return self._step(model_output, timestep, sample, return_dict)


class KDPM2AncestralDiscreteScheduler(KDPM2DiscreteScheduler):
    """`dpm2_ancestral`: two calls of the network and fresh noise per step."""

    def _next(self, listed: Tensor) -> Tensor:
        return ancestral_step(listed[:-2], listed[1:-1], 1.0)[0]

    def solver(self, index: int, options: StepOptions) -> Solver:
        return dpm2_ancestral

    def step(  # pyright: ignore[reportIncompatibleMethodOverride] - as in diffusers
        self,
        model_output: Tensor,
        timestep: Timestep,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> StepResult:
        """The latents after half a step, from the network's output."""
        return self._step(model_output, timestep, sample, return_dict, generator)


class DPMSolverSDEScheduler(SecondOrderScheduler):
    """`dpmpp_sde`: two calls of the network per step, and fresh noise before each of them.

    The noise is a Brownian tree's, from torchsde, seeded by `noise_sampler_seed` and not by generators.
    """

    DEFAULTS: ClassVar[Defaults] = {
        **STABLE,
        "trained_betas": None,
        "prediction_type": "epsilon",
        **NO_CURVES,
        "noise_sampler_seed": None,
        **SPACING,
    }
    PREDICTIONS: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction")
    BY_SLOPE: ClassVar[bool] = False
    _tree: BrownianNoise | None = None

    def _kept(self, times: Array) -> Array:
        return times

    def _entries(self, times: Array, levels: Array) -> tuple[Tensor, Tensor]:
        listed = ended(levels)
        middle = log_midpoint(torch.from_numpy(levels[:-1]).double(), torch.from_numpy(levels[1:]).double())
        shown_times = np.concatenate([times[:1], times[1:].repeat(2)])
        shown_times[1::2] = time_of_level(middle.numpy(), self._trained)
        return torch.from_numpy(shown_times), torch.cat([listed[:1], listed[1:-1].repeat_interleave(2), listed[-1:]])

    def _restart(self) -> None:
        super()._restart()
        self._tree = None

    def solver(self, index: int, options: StepOptions) -> Solver:
        return dpmpp_sde

    def advance(self, timestep: Timestep, x: Tensor, estimate: Estimate, noise: Noise, options: StepOptions) -> Advance:
        index = self._index(timestep)
        if self._tree is None:
            least, most = float(self.sigmas[self.sigmas > 0].min()), float(self.sigmas.max())
            self._tree = BrownianNoise(x.float(), least, most, self.config.noise_sampler_seed)
        if self._awaited is None:
            sigma, lower = float(self.sigmas[index]), float(self.sigmas[index + 1])
            self._drawn = self._tree.for_step(sigma, lower, options.get("s_noise", 1.0))
        return super().advance(timestep, x, estimate, self._drawn, {})

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True, s_noise: float = 1.0
    ) -> StepResult:
        """The latents after half a step, from the network's output."""
        return self._step(model_output, timestep, sample, return_dict, s_noise=s_noise)
