"""Schedulers whose list is of whole training times: DDIM, DDPM and PNDM."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.types import Device

from enlarger.diffusers.call.arguments import ArgumentError
from enlarger.diffusers.schedulers.k_diffusion import BETAS
from enlarger.diffusers.schedulers.scheduling_utils import (
    Defaults,
    Generators,
    Scheduler,
    StepOptions,
    StepResult,
    Timestep,
)
from enlarger.diffusion.estimates import Bounds
from enlarger.diffusion.listing import level_of, timesteps_of
from enlarger.diffusion.sample import Solver
from enlarger.diffusion.solvers.pndm_calls import Span, pndm_by_calls
from enlarger.diffusion.solvers.variance import ddim_clipped, ddpm_of, posterior_deviation, posterior_variance
from enlarger.diffusion.stepper import Stepper

CLIPPED = {
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "clip_sample_range": 1.0,
    "sample_max_value": 1.0,
}


class TimedScheduler(Scheduler):
    """The base of those whose steps are told a training time and know its level by it."""

    MULTISTEP: ClassVar[bool] = False
    TINY: ClassVar[bool] = False
    init_noise_sigma = 1.0
    custom_timesteps: bool = False

    def _list_training(self) -> None:
        self.timesteps = torch.arange(len(self) - 1, -1, -1)

    def _list(self, steps: int, device: Device) -> None:
        """The entries of a run of so many steps."""
        config = self.config
        if steps > len(self):
            raise ArgumentError(f"`num_inference_steps` is {steps}, expected at most the {len(self)} of training")
        self.num_inference_steps = steps
        try:
            times = timesteps_of(len(self), steps, config.timestep_spacing, config.steps_offset)
        except ValueError as error:
            raise ArgumentError(str(error)) from error
        self._use_times(times.round(), device)

    def _use_times(self, times: Any, device: Device) -> None:
        self.timesteps = torch.from_numpy(np.asarray(times).astype(np.int64)).to(device)
        self._restart()

    def levels(self, begin: int = 0) -> Tensor:
        ends = [self.level(int(t)) for t in self.timesteps[begin:]]
        return torch.stack([*ends, self.next_level(self.timesteps[-1])])

    def run_levels(self, begin: int, stop: int) -> Tensor:
        return torch.stack([*(self.level(int(t)) for t in self.timesteps[begin:stop]), self.reached(begin, stop)])

    def reached(self, begin: int, stop: int) -> Tensor:
        """The level that a run of these entries ends at."""
        return self.next_level(self.timesteps[stop - 1])

    def called_at(self, timestep: Timestep) -> Tensor:
        return self.level(int(timestep))

    def next_level(self, timestep: Timestep) -> Tensor:
        """The level that a step from a timestep goes to."""
        raise NotImplementedError

    def _level_or_last(self, timestep: int) -> Tensor:
        """The level of a time, or below 0 the one that runs end at."""
        if timestep >= 0:
            return self.level(timestep)
        return level_of(torch.tensor(1.0) if self.own("set_alpha_to_one", True) else self.alphas_cumprod[0])

    @property
    def final_alpha_cumprod(self) -> Tensor:
        return torch.tensor(1.0) if self.own("set_alpha_to_one", True) else self.alphas_cumprod[0]

    def previous_timestep(self, timestep: Timestep) -> Timestep:
        """The time that a step goes to: the next of the list, or below 0."""
        if not self.custom_timesteps and not self.num_inference_steps:
            return int(timestep) - 1
        place = int((self.timesteps == int(timestep)).nonzero()[0])
        return torch.tensor(-1) if place == len(self.timesteps) - 1 else self.timesteps[place + 1]

    def _run_solver(self, timestep: Timestep, options: StepOptions) -> Stepper:
        pair = torch.stack([self.called_at(timestep), self.next_level(timestep)])
        return Stepper(self.solver(int(timestep), options), pair)

    def _levels_for(self, timesteps: Tensor) -> Tensor:
        return torch.stack([self.level(int(t)) for t in timesteps])

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v of clean latents at training times."""
        return self._velocity(sample, noise, timesteps)


class DDIMScheduler(TimedScheduler):
    """`ddim`, the one with `eta`. A step ends a whole stride of times lower, wherever the next one starts."""

    DEFAULTS: ClassVar[Defaults] = {
        **BETAS,
        "trained_betas": None,
        "clip_sample": True,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "prediction_type": "epsilon",
        **CLIPPED,
        "timestep_spacing": "leading",
        "rescale_betas_zero_snr": False,
    }
    ESTIMATES: ClassVar[bool] = True

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """List the entries of a run of so many steps."""
        self._list(num_inference_steps, device)

    def _get_variance(self, timestep: Timestep, prev_timestep: Timestep) -> Tensor:
        """The variance of the noise that a step from one time to another adds at eta 1."""
        return posterior_variance("fixed_small", self.level(int(timestep)), self._level_or_last(int(prev_timestep)))

    def next_level(self, timestep: Timestep) -> Tensor:
        if self.num_inference_steps is None:
            raise ArgumentError("the number of inference steps is not known, call set_timesteps first")
        return self._level_or_last(int(timestep) - len(self) // self.num_inference_steps)

    def bounds(self) -> Bounds:
        return Bounds()  # the solver clips, and keeps the noise estimate

    def solver(self, index: int, options: StepOptions) -> Solver:
        return partial(
            ddim_clipped,
            eta=options.get("eta", 0.0),
            clip=super().bounds(),
            consistent=bool(options.get("clipped", False)),
        )

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, eta: float = 0.0,
        use_clipped_model_output: bool = False, generator: Generators = None, variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> StepResult:  # fmt: skip
        """The latents after a step, from the network's output."""
        if eta > 0 and variance_noise is not None and generator is not None:
            raise ArgumentError("found both `generator` and `variance_noise`, expected at most one of them")
        return self._step(
            model_output, timestep, sample, return_dict, generator, variance_noise, eta=eta,
            clipped=use_clipped_model_output,
        )  # fmt: skip


class DDPMScheduler(TimedScheduler):
    """`ddpm`: the posterior's mean, and noise of the `variance_type`."""

    DEFAULTS: ClassVar[Defaults] = {
        **BETAS,
        "trained_betas": None,
        "variance_type": "fixed_small",
        "clip_sample": True,
        "prediction_type": "epsilon",
        **CLIPPED,
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    }
    ESTIMATES: ClassVar[bool] = True

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Device = None, timesteps: Sequence[int] | None = None
    ) -> None:
        """List the entries of a run of so many steps, or falling training times of one's own."""
        if num_inference_steps is not None and timesteps is not None:
            raise ArgumentError("give exactly one of `num_inference_steps` and `timesteps`")
        self.custom_timesteps = timesteps is not None
        if timesteps is None:
            self._list(num_inference_steps or 0, device)
            return
        check_falling(timesteps, len(self))
        self._use_times(timesteps, device)

    def next_level(self, timestep: Timestep) -> Tensor:
        return self._level_or_last(int(self.previous_timestep(timestep)))

    def _get_variance(
        self, t: Timestep, predicted_variance: Tensor | None = None, variance_type: str | None = None
    ) -> Tensor:
        """The variance of the noise that a step adds, by the names of `variance_type`."""
        kind = self.config.variance_type if variance_type is None else variance_type
        return posterior_variance(kind, self.level(int(t)), self.next_level(t), predicted_variance)

    def _predicted(self, model_output: Tensor, sample: Tensor) -> Tensor:
        learned = self.config.variance_type in ("learned", "learned_range")
        self._variance: Tensor | None = None
        if not learned or model_output.shape[1] != 2 * sample.shape[1]:
            return model_output
        output, self._variance = model_output.chunk(2, 1)
        return output

    def solver(self, index: int, options: StepOptions) -> Solver:
        predicted = getattr(self, "_variance", None)

        def deviation(sigma: Tensor, lower: Tensor) -> Tensor | None:
            return posterior_deviation(self.config.variance_type, sigma, lower, predicted) if index > 0 else None

        return partial(ddpm_of, deviation=deviation)

    def step(
        self,
        model_output: Tensor,
        timestep: Timestep,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> StepResult:
        """The latents after a step, from the network's output."""
        return self._step(model_output, timestep, sample, return_dict, generator)


class PNDMScheduler(TimedScheduler):
    """`plms`, as SD1's and SD2's files have it; without `skip_prk_steps` it starts with Runge-Kutta.

    It mixes raw outputs, velocities where the network predicts those.
    """

    DEFAULTS: ClassVar[Defaults] = {
        **BETAS,
        "trained_betas": None,
        "skip_prk_steps": False,
        "set_alpha_to_one": False,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 0,
    }
    PREDICTIONS: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction")
    MULTISTEP: ClassVar[bool] = True
    pndm_order = 4
    counter = 0
    prk_timesteps = plms_timesteps = np.array([], np.int64)

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """List the entries of a run of so many steps, one for each call of the network."""
        config = self.config
        self.num_inference_steps = num_inference_steps
        times = timesteps_of(len(self), num_inference_steps, config.timestep_spacing, config.steps_offset)
        rising = times.round().astype(np.int64)[::-1]
        half = len(self) // num_inference_steps // 2
        if config.skip_prk_steps:
            self.prk_timesteps = np.array([], np.int64)
            self.plms_timesteps = np.concatenate([rising[:-1], rising[-2:-1], rising[-1:]])[::-1].copy()
        else:
            start = (
                rising[-self.pndm_order :].repeat(2) + np.tile(np.array([0, half]), self.pndm_order)[: 2 * len(rising)]
            )
            self.prk_timesteps = start[:-1].repeat(2)[1:-1][::-1].copy()
            self.plms_timesteps = rising[:-3][::-1].copy()
        self._use_times(np.concatenate([self.prk_timesteps, self.plms_timesteps]), device)
        self.counter = 0

    def _stride(self) -> int:
        if self.num_inference_steps is None:
            raise ArgumentError("the number of inference steps is not known, call set_timesteps first")
        return len(self) // self.num_inference_steps

    def next_level(self, timestep: Timestep) -> Tensor:
        return self._level_or_last(int(timestep) - self._stride())

    def span(self, counter: int, timestep: int) -> Span:
        """From where to where the step of a call goes."""
        stride, called, start = self._stride(), timestep, timestep
        if counter < len(self.prk_timesteps):
            start, lower = int(self.prk_timesteps[counter // 4 * 4]), called - (0 if counter % 2 else stride // 2)
        elif counter == 1:
            start, lower = called + stride, called
        else:
            lower = called - stride
        return Span(self.level(called), self.level(start), self._level_or_last(lower))

    def reached(self, begin: int, stop: int) -> Tensor:
        return self.span(stop - begin - 1, int(self.timesteps[stop - 1])).lower

    def _run_solver(self, timestep: Timestep, options: StepOptions) -> Stepper:
        self.spans: list[Span] = []
        solver = partial(
            pndm_by_calls,
            spans=_Growing(self.spans),
            runge_kutta=len(self.prk_timesteps),
            of_velocity=self.config.prediction_type == "v_prediction",
        )
        return Stepper(solver, self.levels()[:2])

    def solver(self, index: int, options: StepOptions) -> Solver:
        raise NotImplementedError("the run is built call by call")

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> StepResult:
        """The latents after a call, from the network's output; the calls so far decide whether it is Runge-Kutta's."""
        return self._step(model_output, timestep, sample, return_dict)

    step_prk = step_plms = step

    def advance(self, timestep: Timestep, x: Tensor, estimate: Any, noise: Any, options: StepOptions) -> Any:
        span = self.span(self.counter, int(timestep))
        if self._stepper is None:
            self._stepper = self._run_solver(timestep, options)
        if not self.config.skip_prk_steps and len(self.prk_timesteps) <= self.counter < 12:
            raise ArgumentError("PNDM needs at least 4 steps for its Runge-Kutta start; set skip_prk_steps=True")
        self.spans.append(span)
        self.counter += 1
        return super().advance(timestep, x, estimate, noise, options)


class _Growing(Sequence[Any]):
    """A list that is still written while it is read."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __getitem__(self, place: Any) -> Any:
        return self.items[place]

    def __len__(self) -> int:
        return len(self.items)


def check_falling(timesteps: Sequence[int], count: int) -> None:
    if any(after >= before for before, after in pairwise(timesteps)):
        raise ArgumentError("`timesteps` must be in descending order")
    if timesteps[0] >= count:
        raise ArgumentError(f"`timesteps` must start before {count}, the training times; found {timesteps[0]}")
