"""A pipeline's run as its scheduler steps it: which entries of the list, told what times, by which solver.

Tasks see an ordinary course and solver; each call of the network is a step to them, as it is to diffusers' callbacks.
"""

import inspect
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from enlarger.diffusers.call.arguments import ArgumentError
from enlarger.diffusers.schedulers.scheduling_utils import Scheduler, StepOptions
from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.estimates import flow_matching, variance_preserving
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.precondition import Precondition
from enlarger.diffusion.sample import Step, Steps
from enlarger.diffusion.sampler import SigmaSchedule
from enlarger.diffusion.schedule import NoiseSchedule, TimestepMap
from enlarger.diffusion.stepper import Estimate
from enlarger.errors import Unsupported
from enlarger.tasks.latent_diffusion.sampling import SamplingPlan

Listed = tuple[int | None, Sequence[float] | None, Sequence[float] | None]  # steps, timesteps, sigmas


@dataclass(eq=False)
class Run:
    """The entries from `begin` to before `stop` of a scheduler's list.

    `steps` is how many steps diffusers' progress bar counts. `now` is the timestep that the network is told.
    """

    scheduler: Scheduler  # a copy, which the run steps
    begin: int
    stop: int
    steps: int
    options: StepOptions
    now: Tensor

    @property
    def timesteps(self) -> Tensor:
        return self.scheduler.timesteps[self.begin : self.stop]

    @property
    def warmup(self) -> int:
        """Calls at the start that end no step."""
        return max(len(self.timesteps) - self.steps * self.scheduler.order, 0)

    def sigma_schedule(self) -> SigmaSchedule:
        """The noise levels of the calls, and the one that the last reaches."""
        scheduler = self.scheduler
        levels = scheduler.run_levels(self.begin, self.stop)
        if bool((levels[:-1] == levels[-1]).any()):
            levels[-1] *= 1 - 1e-12  # a task knows the last step by its level
        preserving = scheduler.outside is variance_preserving
        widened = not preserving and float(scheduler.init_noise_sigma) > float(scheduler.sigmas.max()) * (1 + 1e-6)
        clock = TimestepMap(NoiseSchedule(levels.flip(0)))  # not asked: see `precondition`
        return SigmaSchedule(levels, self.timesteps.double().cpu(), clock, preserving, widened)

    def scale(self, done: int) -> float:
        """What turns latents after so many calls into those that the scheduler gives."""
        return 1 / float(self.scheduler.outside(self.scheduler.run_levels(self.begin, self.stop)[done]))

    def precondition(self) -> Precondition:
        """What the network's output means, and the listed time it is told."""
        return self.scheduler.precondition(lambda: self.now)

    def method(self, noise: Noise, dtype: torch.dtype) -> SamplingPlan:
        """The run for a task; noise inside it is drawn in the network's precision, as in diffusers."""

        def drawn(like: Tensor) -> Tensor:
            return noise(like.to(dtype)).to(like)

        solver = self._solve if _is_ours(self.scheduler) else self._solve_by_step
        drawn_from = drawn if _is_ours(self.scheduler) else noise

        def solve(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Steps:
            return solver(denoise, x, sigmas, drawn_from)

        return SamplingPlan(self.sigma_schedule(), solve, noise)

    def _solve_by_step(self, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Steps:
        """The run by the `step` of a subclass of someone else's, which is given the network's raw outputs."""
        scheduler, outside, scalings = copy(self.scheduler), self.scheduler.outside, self.precondition()
        scheduler.set_begin_index(self.begin)
        options: dict[str, Any] = dict(self.options)
        if "generator" in inspect.signature(scheduler.step).parameters:
            options["generator"] = getattr(noise, "generators", getattr(noise, "generator", None))
        for i, timestep in enumerate(self.timesteps):
            self.now = timestep
            called = scheduler.called_at(timestep)
            denoised, scale = denoise(x, called), scalings(called)
            output = (denoised - x * scale.skip) / scale.output
            latents = scheduler.step(output, timestep, x / outside(called), **options, return_dict=False)[0]
            x = yield Step(latents * outside(sigmas[i + 1]), denoised, sigmas[i + 1])

    def _solve(self, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Steps:
        scheduler, outside = copy(self.scheduler), self.scheduler.outside
        scheduler.set_begin_index(self.begin)
        for i, timestep in enumerate(self.timesteps):
            self.now = timestep
            denoised = scheduler.bounds()(denoise(x, scheduler.called_at(timestep)))
            done = scheduler.advance(timestep, x, _always(denoised), noise, self.options)
            x = done.x * (outside(sigmas[i + 1]) / outside(done.sigma))  # the same latents, taken for the next call's
            x = yield Step(x, done.denoised, sigmas[i + 1])


def listed(scheduler: Scheduler, asked: Listed, eta: float = 0.0) -> Run:
    """The whole list for so many steps, or for timesteps or sigmas of the caller's own where the class takes those."""
    steps, timesteps, sigmas = asked
    if timesteps is not None and sigmas is not None:
        raise ArgumentError("found both `timesteps` and `sigmas`, expected at most one of them")
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    own = {"timesteps": timesteps, "sigmas": sigmas}
    given = {name: list(values) for name, values in own.items() if values is not None}
    for name in given:
        if name not in accepted:
            raise ArgumentError(f"{type(scheduler).__name__}.set_timesteps takes no `{name}`; use another scheduler")
    if not given and (not isinstance(steps, Integral) or int(steps) < 1):
        raise ArgumentError(f"`num_inference_steps` is {steps}, expected how many steps there are, 1 or more")
    if scheduler.outside is flow_matching:
        raise Unsupported("flow sigmas are not for Stable Diffusion's networks; set use_flow_sigmas=False")
    scheduler.set_timesteps(**(given or {"num_inference_steps": steps}))
    made = copy(scheduler)
    options = {"eta": eta} if "eta" in inspect.signature(scheduler.step).parameters else {}
    count = len(made.timesteps)
    return Run(made, 0, count, count if given else int(steps or 0), options, made.timesteps[0])


def last_part(run: Run, strength: float) -> Run:
    """The last `strength` of the steps."""
    order = run.scheduler.order
    steps = min(int(run.steps * strength), run.steps)
    begin = (run.steps - steps) * order
    if steps < 1 or begin >= run.stop:
        raise ArgumentError(
            f"After adjusting the num_inference_steps by strength parameter: {strength}, the number of pipeline steps "
            f"is {steps} which is < 1 and not appropriate for this pipeline."
        )
    return _part(run, begin, run.stop, steps)


def between(run: Run, start: float | None, end: float | None, strength: float = 1.0) -> Run:
    """The entries from the share `start` of the training time, or else the last `strength`, to the share `end`."""
    if start is not None and end is not None and start >= end:
        raise ArgumentError(f"`denoising_start`: {start} cannot be larger than or equal to `denoising_end`: {end}")
    times, count = run.scheduler.timesteps, len(run.scheduler)
    if start is None:
        run = last_part(run, strength) if strength < 1 else run
    else:
        left = int((times < _cutoff("denoising_start", start, count)).sum())
        left += 1 if run.scheduler.order == 2 and left % 2 == 0 else 0
        run = _part(run, len(times) - left, len(times), left)
    if end is not None and end != 1:
        left = int((run.timesteps >= _cutoff("denoising_end", end, count)).sum())
        run = _part(run, run.begin, run.begin + left, left)
    if not run.begin < run.stop:
        raise ArgumentError(
            f"no steps are left between denoising_start {start} and denoising_end {end}; use more steps"
        )
    return run


def _part(run: Run, begin: int, stop: int, steps: int) -> Run:
    return Run(run.scheduler, begin, stop, steps, run.options, run.now)


def _cutoff(name: str, share: float, count: int) -> int:
    if not 0 < share < 1:
        raise ArgumentError(f"`{name}` is {share}, expected a number between 0 and 1, or None for the whole run")
    return round(count - share * count)


def _is_ours(scheduler: Any) -> bool:
    """Whether steps are those of a class here, and not of a subclass of someone else's."""
    return scheduler.step.__module__.startswith("enlarger.diffusers.")


def _always(denoised: Tensor) -> Estimate:
    def estimate(x: Tensor, sigma: Tensor) -> Tensor:
        return denoised

    return estimate
