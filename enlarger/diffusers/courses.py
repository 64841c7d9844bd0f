"""Which part of a scheduler's list of calls a run walks, counted as diffusers counts.

diffusers lists one timestep per call of the network: PNDM's second one twice, and those of Heun twice after the first.
A run that starts or stops inside such a list does what `enlarger.diffusion.partial` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from enlarger.diffusers.arguments import ArgumentError
from enlarger.diffusion.partial import heun_to_a_guess, plms_resumed, plms_resumed_second
from enlarger.diffusion.sample import Solver
from enlarger.diffusion.sampler import Course, Sampler
from enlarger.diffusion.solvers import SOLVERS, ddim
from enlarger.errors import Unsupported

DOUBLE = ("heun", "dpm2", "dpm2_ancestral")  # two calls per step


@dataclass(frozen=True, eq=False)
class Walk:
    """A course, the solver that walks it, and how many calls of the network diffusers counts for it."""

    course: Course
    solver: Solver
    calls: int


def whole(
    sampler: Sampler, steps: int, timesteps: Sequence[float] | None = None, sigmas: Sequence[float] | None = None
) -> Course:  # fmt: skip
    """The scheduler's course, or one of the caller's own."""
    if timesteps is not None and sigmas is not None:
        raise ArgumentError("found both `timesteps` and `sigmas`, expected at most one of them")
    if timesteps is None and sigmas is None:
        return sampler.course(steps)
    if sigmas is not None:
        return sampler.along(torch.tensor(sigmas, dtype=torch.float64))
    levels = sampler.schedule.sigma(torch.tensor(timesteps, dtype=torch.float64))
    return sampler.along(torch.cat([levels, torch.tensor([sampler.last], dtype=torch.float64)]))


def solver_of(sampler: Sampler, eta: float = 0.0) -> Solver:
    """The scheduler's solver; `eta` is DDIM's alone."""
    if eta and sampler.solver != "ddim":
        raise Unsupported(
            f"eta is {eta:g}, but only DDIMScheduler has it; EulerAncestralDiscreteScheduler adds noise too"
        )
    return partial(ddim, eta=eta) if eta else SOLVERS[sampler.solver]


def entries(sampler: Sampler, course: Course) -> Tensor:
    """The timesteps as diffusers lists them, one per call."""
    times = course.times
    if sampler.solver == "plms" and len(times) > 1:
        return torch.cat([times[:2], times[1:]])
    if sampler.solver == "heun":
        return torch.cat([times[:1], times[1:].repeat_interleave(2)])
    if sampler.solver in DOUBLE:
        raise Unsupported("a run of KDPM2 cannot be split by time; split it by noise level with enlarger.generate")
    return times


def by_strength(sampler: Sampler, course: Course, strength: float, eta: float = 0.0) -> Walk:
    """The last `strength` of the steps."""
    steps = min(int(course.steps * strength), course.steps)
    if steps < 1:
        raise ArgumentError(
            f"After adjusting the num_inference_steps by strength parameter: {strength}, the number of pipeline steps "
            f"is {steps} which is < 1 and not appropriate for this pipeline."
        )
    first = course.steps - steps
    if sampler.solver in DOUBLE:
        return Walk(course.part(first), solver_of(sampler, eta), 2 * steps - 1)
    return from_entry(sampler, course, first, eta)


def between(sampler: Sampler, course: Course, start: float | None, end: float | None, eta: float = 0.0) -> Walk:
    """The steps from the share `start` of the training time to the share `end`, None: from and to the ends."""
    listed, count = entries(sampler, course), sampler.schedule.count
    first = 0
    if start is not None:
        first = int((listed >= round(count - start * count)).sum())
        if sampler.solver == "heun" and (len(listed) - first) % 2 == 0:
            first -= 1  # not between the halves of a step
    stop = len(listed)
    if end is not None:
        stop = int((listed >= round(count - end * count)).sum())
    if not first < stop:
        raise ArgumentError(f"no steps are left between denoising_start {start} and denoising_end {end}")
    return from_entry(sampler, course, first, eta, stop)


def from_entry(sampler: Sampler, course: Course, first: int, eta: float = 0.0, stop: int | None = None) -> Walk:
    """From one entry of the list to before another."""
    stop = len(entries(sampler, course)) if stop is None else stop
    if sampler.solver == "heun":
        return _heun_part(course, first, stop)
    if sampler.solver != "plms" or (first == 0 and stop < 2):
        return Walk(course.part(first, stop), solver_of(sampler, eta), stop - first)
    levels = max(stop - 1, 1)  # the list has one entry more than there are levels
    if first == 0:
        return Walk(course.part(0, levels), solver_of(sampler, eta), stop)
    if first == 1:
        return Walk(course.part(1, levels), partial(plms_resumed_second, before=course.ladder[0]), stop - first)
    return Walk(course.part(first - 1, levels), plms_resumed, stop - first)


def _heun_part(course: Course, first: int, stop: int) -> Walk:
    begin, halves = (first + 1) // 2, stop - first
    if stop == 2 * course.steps - 1:
        return Walk(course.part(begin), SOLVERS["heun"], halves)
    if halves % 2 == 0:
        return Walk(course.part(begin, begin + halves // 2), SOLVERS["heun"], halves)
    return Walk(course.part(begin, begin + halves // 2 + 1), heun_to_a_guess, halves)
