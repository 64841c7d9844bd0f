"""Schedulers of networks distilled to few steps: LCM and TCD."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.types import Device

from enlarger.diffusers.call.arguments import ArgumentError
from enlarger.diffusers.pipelines.pipeline_output import SchedulerOutput
from enlarger.diffusers.schedulers.discrete_time import TimedScheduler, check_falling
from enlarger.diffusers.schedulers.k_diffusion import STABLE
from enlarger.diffusers.schedulers.scheduling_utils import Defaults, Generators, StepOptions, StepResult, Timestep, log
from enlarger.diffusion.estimates import Bounds
from enlarger.diffusion.listing import distilled_timesteps
from enlarger.diffusion.sample import Solver
from enlarger.diffusion.solvers.consistency import consistency_boundary, lcm, tcd


class LCMScheduler(TimedScheduler):
    """`lcm`: to the denoised latents and back up, for networks distilled to consistency."""

    DEFAULTS: ClassVar[Defaults] = {
        **STABLE,
        "beta_schedule": "scaled_linear",
        "trained_betas": None,
        "original_inference_steps": 50,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "prediction_type": "epsilon",
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
        "timestep_scaling": 10.0,
        "rescale_betas_zero_snr": False,
    }
    ESTIMATES: ClassVar[bool] = True
    FREE: ClassVar[bool] = False  # whether `original_inference_steps` stands for all training times

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Device = None,
        original_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        strength: float = 1.0,
    ) -> None:
        """List times evenly chosen from those of the distillation, or those of one's own."""
        if (num_inference_steps is None) == (timesteps is None):
            raise ArgumentError("give exactly one of `num_inference_steps` and `timesteps`")
        stated = original_inference_steps
        original = self.config.original_inference_steps if stated is None else stated
        if original > len(self) and not (self.FREE and stated is not None):
            raise ArgumentError(f"`original_inference_steps` is {original}, expected at most {len(self)}")
        origin = self._origin(original, stated, strength)
        if timesteps is not None:
            times = self._own(timesteps, origin, strength)
        else:
            steps = num_inference_steps or 0
            if steps > min(len(self), original) or not steps or len(origin) // steps < 1:
                raise ArgumentError(
                    f"`num_inference_steps` is {steps}, expected at most {min(len(origin), original)} of the "
                    f"{original} original steps at strength {strength:g}"
                )
            self.num_inference_steps, self.custom_timesteps = steps, False
            times = distilled_timesteps(origin, steps)
        self._use_times(times, device)

    def _origin(self, original: int, stated: int | None, strength: float) -> Sequence[int]:
        """The times of the distillation."""
        if self.FREE and stated is not None:
            return range(int(len(self) * strength))
        stride = len(self) // original
        return [i * stride - 1 for i in range(1, int(original * strength) + 1)]

    def _own(self, timesteps: Sequence[int], origin: Sequence[int], strength: float) -> Sequence[int]:
        check_falling(timesteps, len(self))
        strange = [t for t in timesteps[1:] if t not in set(origin)]
        if strange or (strength == 1 and timesteps[0] != len(self) - 1):
            log.warning("the timesteps %s are not those of the distillation", strange or timesteps[:1])
        self.num_inference_steps, self.custom_timesteps = len(timesteps), True
        return timesteps[len(timesteps) - min(int(len(timesteps) * strength), len(timesteps)) :]

    def called_at(self, timestep: Timestep) -> Tensor:
        self._index(timestep)
        return self.level(int(timestep))

    def reached(self, begin: int, stop: int) -> Tensor:
        return self._following(stop)

    def next_level(self, timestep: Timestep) -> Tensor:
        return self._following(self._index(timestep) + 1)

    def _following(self, place: int) -> Tensor:
        last = place >= (self.num_inference_steps or 0) or place >= len(self.timesteps)
        return torch.zeros((), dtype=torch.float64) if last else self.level(int(self.timesteps[place]))

    def solver(self, index: int, options: StepOptions) -> Solver:
        return partial(lcm, boundary=[consistency_boundary(index, self.config.timestep_scaling)])

    def step(
        self,
        model_output: Tensor,
        timestep: Timestep,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> StepResult:
        """The latents after a step, from the network's output."""
        if self.num_inference_steps is None:
            raise ArgumentError("the number of inference steps is not known, call set_timesteps first")
        found = self._after_step(model_output, timestep, sample, generator, None, {})
        made = SchedulerOutput(found.prev_sample, denoised=found.pred_original_sample)
        return made if return_dict else made.to_tuple()


class TCDScheduler(LCMScheduler):
    """`tcd`: below the next time and noise back up to it; `eta` says how far."""

    FREE: ClassVar[bool] = True

    def _following(self, place: int) -> Tensor:
        return self.level(int(self.timesteps[place]) if place < len(self.timesteps) else 0)

    def bounds(self) -> Bounds:
        return Bounds()

    def solver(self, index: int, options: StepOptions) -> Solver:
        place = (self._step_index or 0) + 1
        following = int(self.timesteps[place]) if place < len(self.timesteps) else 0
        below = self.level(int((1 - options.get("eta", 0.3)) * following))
        return partial(tcd, below=[below])

    def step(  # pyright: ignore[reportIncompatibleMethodOverride] - as in diffusers
        self,
        model_output: Tensor,
        timestep: Timestep,
        sample: Tensor,
        eta: float = 0.3,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> StepResult:
        """The latents after a step, from the network's output."""
        if self.num_inference_steps is None:
            raise ArgumentError("the number of inference steps is not known, call set_timesteps first")
        if not 0 <= eta <= 1:
            raise ArgumentError(f"`eta` is {eta}, expected 0 to 1")
        return self._step(model_output, timestep, sample, return_dict, generator, eta=eta)
