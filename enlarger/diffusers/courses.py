"""Which part of a scheduler's list of calls a run walks, counted as diffusers counts.

diffusers lists one timestep per call of the network: PNDM's second one twice, and those of Heun twice after the first.
A run that starts or stops inside such a list does what `enlarger.diffusion.partial` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from enlarger.diffusers.arguments import ArgumentError
from enlarger.diffusion.partial import heun_to_a_guess, plms_resumed, plms_resumed_second
from enlarger.diffusion.sample import Solver
from enlarger.diffusion.sampler import Course, Sampler, calls
from enlarger.diffusion.solvers import SOLVERS, ddim
from enlarger.diffusion.solvers.dpmpp import FEW
from enlarger.errors import Unsupported

DOUBLE = ("heun", "dpm2", "dpm2_ancestral", "dpmpp_sde")  # two calls per step
UNSPLIT = (*DOUBLE[1:], "pndm")  # their lists hold levels between those of the ladder
Stop = tuple[int, Tensor]  # the number and the training time under which a step is reported


@dataclass(frozen=True, eq=False)
class Walk:
    """A course, the solver that walks it, how many calls of the network diffusers counts for it, and what it reports
    after each step."""

    course: Course
    solver: Solver
    calls: int
    stops: Sequence[Stop]


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
    return partial(ddim, eta=eta) if eta else sampler.method()


def entries(sampler: Sampler, course: Course) -> Tensor:
    """The timesteps as diffusers lists them, one per call."""
    times = course.times
    if sampler.solver == "plms" and len(times) > 1:
        return torch.cat([times[:2], times[1:]])
    if sampler.solver == "heun":
        return torch.cat([times[:1], times[1:].repeat_interleave(2)])
    if sampler.solver in UNSPLIT:
        raise Unsupported(
            f"a run of {sampler.solver} cannot be split by time; split it by noise level with enlarger.generate"
        )
    return times


def by_strength(
    sampler: Sampler, course: Course, strength: float, eta: float = 0.0, asked: int | None = None
) -> Walk:  # fmt: skip
    """The last `strength` of the steps; `asked` is how many were asked for, where the course may have fewer."""
    first = _skipped(course, strength, asked)
    if sampler.solver == "pndm" and first:
        raise Unsupported(
            f"strength {strength:g} cannot start inside PNDM's Runge-Kutta start; set skip_prk_steps=True, as the "
            "official files do"
        )
    if sampler.solver in UNSPLIT:
        part, solver = course.part(first), solver_of(sampler, eta)
        seen = calls(solver, part.ladder)
        return Walk(part, solver, 0 if seen is None else len(seen), _reported(sampler, part.times))
    return from_entry(sampler, course, 2 * first if sampler.solver == "heun" else first, eta)


def between(
    sampler: Sampler, course: Course, start: float | None, end: float | None, eta: float = 0.0, strength: float = 1.0,
    asked: int | None = None,
) -> Walk:  # fmt: skip
    """The steps from the share `start` of the training time to the share `end`.

    None: from the last `strength` of the steps, and to the end.
    """
    if start is None and end is None:
        return by_strength(sampler, course, strength, eta, asked)
    listed = entries(sampler, course)
    if start is None:
        first = _skipped(course, strength, asked) * (2 if sampler.solver == "heun" else 1)
    else:
        first = _before(sampler, listed, start, "denoising_start")
        if sampler.solver == "heun" and (len(listed) - first) % 2 == 0:
            first -= 1  # not between the halves of a step
    stop = len(listed) if end is None else _before(sampler, listed, end, "denoising_end")
    if start is not None and end is not None and start >= end:
        raise ArgumentError(f"`denoising_start`: {start} cannot be larger than or equal to `denoising_end`: {end}")
    if not first < stop:
        raise ArgumentError(
            f"no steps are left between denoising_start {start} and denoising_end {end}; use more steps"
        )
    return from_entry(sampler, course, first, eta, stop)


def _skipped(course: Course, strength: float, asked: int | None) -> int:
    """How many steps a strength leaves out."""
    listed = course.steps if asked is None else asked
    steps = min(int(listed * strength), listed)
    first = listed - steps
    if steps < 1 or first >= course.steps:
        raise ArgumentError(
            f"After adjusting the num_inference_steps by strength parameter: {strength}, the number of pipeline steps "
            f"is {steps} which is < 1 and not appropriate for this pipeline."
        )
    return first


def _before(sampler: Sampler, listed: Tensor, share: float, name: str) -> int:
    """How many calls come before a share of the training time has passed."""
    if not 0 < share < 1:
        raise ArgumentError(f"`{name}` is {share}, expected a number between 0 and 1, or None for the whole run")
    count = sampler.schedule.count
    return int((listed >= round(count - share * count)).sum())


def from_entry(sampler: Sampler, course: Course, first: int, eta: float = 0.0, stop: int | None = None) -> Walk:
    """From one entry of the list to before another."""
    listed = entries(sampler, course)
    stop = len(listed) if stop is None else stop
    if sampler.solver == "heun":
        part, solver = _heun_part(course, first, stop)
    elif sampler.solver == "plms":
        part, solver = _plms_part(course, first, stop)
    else:
        part, solver = course.part(first, stop), solver_of(_of_length(sampler, course.steps), eta)
    return Walk(part, solver, stop - first, _reported(sampler, listed[first:stop], len(listed) - course.steps))


def _of_length(sampler: Sampler, steps: int) -> Sampler:
    """Whether DPM-Solver++ ends a part with lower orders is decided by the length of the whole run."""
    eased = sampler.options.get("eased") is not None and sampler.solver.startswith("dpmpp")
    return replace(sampler, options={**sampler.options, "eased": None}) if eased and steps >= FEW else sampler


def _heun_part(course: Course, first: int, stop: int) -> tuple[Course, Solver]:
    begin, halves = (first + 1) // 2, stop - first
    if stop == 2 * course.steps - 1:
        return course.part(begin), SOLVERS["heun"]
    if halves % 2 == 0:
        return course.part(begin, begin + halves // 2), SOLVERS["heun"]
    return course.part(begin, begin + halves // 2 + 1), heun_to_a_guess


def _plms_part(course: Course, first: int, stop: int) -> tuple[Course, Solver]:
    level = min(first, max(first - 1, 1))  # the entries are those of the levels 0, 1, 1, 2, 3 ...
    if stop - first == 1:
        return course.part(level, level + 1), SOLVERS["euler"]
    part = course.part(level, stop - 1)
    if first == 0:
        return part, SOLVERS["plms" if stop > 2 else "heun"]
    return part, partial(plms_resumed_second, before=course.ladder[0]) if first == 1 else plms_resumed


def _reported(sampler: Sampler, listed: Tensor, ahead: int = 0) -> list[Stop]:
    """The step's number and time after each call that ends a step; the first `ahead` calls of PNDM end none."""
    order = 2 if sampler.solver == "heun" else 1
    ahead = 0 if order == 2 else ahead
    times = listed.round().long() if sampler.preserving else listed.float()
    last = len(times) - 1
    return [(i // order, t) for i, t in enumerate(times) if i == last or (i >= ahead and (i + 1) % order == 0)]
