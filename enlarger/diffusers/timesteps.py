"""Which part of a scheduler's list of calls a run walks, counted as diffusers counts.

diffusers lists one timestep per call of the network: PNDM's second one twice, and those of Heun twice after the first.
A run that starts or stops inside such a list does what `enlarger.diffusion.solvers.truncated` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from enlarger.diffusers.arguments import ArgumentError
from enlarger.diffusion.sample import Solver
from enlarger.diffusion.sampler import Sampler, SigmaSchedule, network_call_sigmas
from enlarger.diffusion.solvers import SOLVERS, ddim
from enlarger.diffusion.solvers.dpmpp import LOWER_ORDER_MAX_STEPS
from enlarger.diffusion.solvers.truncated import heun_with_euler_end, plms_resumed_at_second, plms_resumed_at_third
from enlarger.errors import Unsupported

TWO_CALL_SOLVERS = ("heun", "dpm2", "dpm2_ancestral", "dpmpp_sde")  # two calls per step
UNSPLITTABLE_SOLVERS = (*TWO_CALL_SOLVERS[1:], "pndm")  # their lists hold levels between those of the ladder
ReportedStep = tuple[int, Tensor]  # the number and the training time under which a step is reported


@dataclass(frozen=True, eq=False)
class DenoisingRange:
    """A course, the solver that walks it, how many calls of the network diffusers counts for it, and what it reports
    after each step."""

    sigma_schedule: SigmaSchedule
    solver: Solver
    network_calls: int
    reported_steps: Sequence[ReportedStep]


def retrieve_sigma_schedule(
    sampler: Sampler, steps: int, timesteps: Sequence[float] | None = None, sigmas: Sequence[float] | None = None
) -> SigmaSchedule:  # fmt: skip
    """The scheduler's course, or one of the caller's own."""
    if timesteps is not None and sigmas is not None:
        raise ArgumentError("found both `timesteps` and `sigmas`, expected at most one of them")
    if timesteps is None and sigmas is None:
        return sampler.sigma_schedule(steps)
    if sigmas is not None:
        return sampler.schedule_from_sigmas(torch.tensor(sigmas, dtype=torch.float64))
    custom_sigmas = sampler.schedule.sigma(torch.tensor(timesteps, dtype=torch.float64))
    return sampler.schedule_from_sigmas(
        torch.cat([custom_sigmas, torch.tensor([sampler.final_sigma], dtype=torch.float64)])
    )


def make_solver(sampler: Sampler, eta: float = 0.0) -> Solver:
    """The scheduler's solver; `eta` is DDIM's alone."""
    if eta and sampler.solver != "ddim":
        raise Unsupported(
            f"eta is {eta:g}, but only DDIMScheduler has it; EulerAncestralDiscreteScheduler adds noise too"
        )
    return partial(ddim, eta=eta) if eta else sampler.make_solver()


def timesteps_per_call(sampler: Sampler, sigma_schedule: SigmaSchedule) -> Tensor:
    """The timesteps as diffusers lists them, one per call."""
    timesteps = sigma_schedule.timesteps
    if sampler.solver == "plms" and len(timesteps) > 1:
        return torch.cat([timesteps[:2], timesteps[1:]])
    if sampler.solver == "heun":
        return torch.cat([timesteps[:1], timesteps[1:].repeat_interleave(2)])
    if sampler.solver in UNSPLITTABLE_SOLVERS:
        raise Unsupported(
            f"a run of {sampler.solver} cannot be split by time; split it by noise level with enlarger.generate"
        )
    return timesteps


def range_by_strength(
    sampler: Sampler,
    sigma_schedule: SigmaSchedule,
    strength: float,
    eta: float = 0.0,
    requested_steps: int | None = None,
) -> DenoisingRange:
    """The last `strength` of the steps; `asked` is how many were asked for, where the course may have fewer."""
    first_step = _num_skipped_steps(sigma_schedule, strength, requested_steps)
    if sampler.solver == "pndm" and first_step:
        raise Unsupported(
            f"strength {strength:g} cannot start inside PNDM's Runge-Kutta start; set skip_prk_steps=True, as the "
            "official files do"
        )
    if sampler.solver in UNSPLITTABLE_SOLVERS:
        sliced, solver = sigma_schedule.subrange(first_step), make_solver(sampler, eta)
        network_sigmas = network_call_sigmas(solver, sliced.sigmas)
        return DenoisingRange(
            sliced,
            solver,
            0 if network_sigmas is None else len(network_sigmas),
            _reported_steps(sampler, sliced.timesteps),
        )
    return range_by_calls(sampler, sigma_schedule, 2 * first_step if sampler.solver == "heun" else first_step, eta)


def denoising_range(
    sampler: Sampler,
    sigma_schedule: SigmaSchedule,
    start: float | None,
    end: float | None,
    eta: float = 0.0,
    strength: float = 1.0,
    requested_steps: int | None = None,
) -> DenoisingRange:
    """The steps from the share `start` of the training time to the share `end`.

    None: from the last `strength` of the steps, and to the end.
    """
    if start is None and end is None:
        return range_by_strength(sampler, sigma_schedule, strength, eta, requested_steps)
    call_timesteps = timesteps_per_call(sampler, sigma_schedule)
    if start is None:
        first_call = _num_skipped_steps(sigma_schedule, strength, requested_steps) * (
            2 if sampler.solver == "heun" else 1
        )
    else:
        first_call = _num_calls_before(sampler, call_timesteps, start, "denoising_start")
        if sampler.solver == "heun" and (len(call_timesteps) - first_call) % 2 == 0:
            first_call -= 1  # not between the halves of a step
    stop_call = len(call_timesteps) if end is None else _num_calls_before(sampler, call_timesteps, end, "denoising_end")
    if start is not None and end is not None and start >= end:
        raise ArgumentError(f"`denoising_start`: {start} cannot be larger than or equal to `denoising_end`: {end}")
    if not first_call < stop_call:
        raise ArgumentError(
            f"no steps are left between denoising_start {start} and denoising_end {end}; use more steps"
        )
    return range_by_calls(sampler, sigma_schedule, first_call, eta, stop_call)


def _num_skipped_steps(sigma_schedule: SigmaSchedule, strength: float, requested_steps: int | None) -> int:
    """How many steps a strength leaves out."""
    num_steps = sigma_schedule.steps if requested_steps is None else requested_steps
    steps = min(int(num_steps * strength), num_steps)
    first = num_steps - steps
    if steps < 1 or first >= sigma_schedule.steps:
        raise ArgumentError(
            f"After adjusting the num_inference_steps by strength parameter: {strength}, the number of pipeline steps "
            f"is {steps} which is < 1 and not appropriate for this pipeline."
        )
    return first


def _num_calls_before(sampler: Sampler, call_timesteps: Tensor, fraction: float, name: str) -> int:
    """How many calls come before a share of the training time has passed."""
    if not 0 < fraction < 1:
        raise ArgumentError(f"`{name}` is {fraction}, expected a number between 0 and 1, or None for the whole run")
    num_train_timesteps = sampler.schedule.num_train_timesteps
    return int((call_timesteps >= round(num_train_timesteps - fraction * num_train_timesteps)).sum())


def range_by_calls(
    sampler: Sampler, sigma_schedule: SigmaSchedule, first_call: int, eta: float = 0.0, stop_call: int | None = None
) -> DenoisingRange:
    """From one entry of the list to before another."""
    call_timesteps = timesteps_per_call(sampler, sigma_schedule)
    stop_call = len(call_timesteps) if stop_call is None else stop_call
    if sampler.solver == "heun":
        sliced, solver = _slice_heun(sigma_schedule, first_call, stop_call)
    elif sampler.solver == "plms":
        sliced, solver = _slice_plms(sigma_schedule, first_call, stop_call)
    else:
        sliced, solver = (
            sigma_schedule.subrange(first_call, stop_call),
            make_solver(_keep_lower_order_final(sampler, sigma_schedule.steps), eta),
        )
    return DenoisingRange(
        sliced,
        solver,
        stop_call - first_call,
        _reported_steps(sampler, call_timesteps[first_call:stop_call], len(call_timesteps) - sigma_schedule.steps),
    )


def _keep_lower_order_final(sampler: Sampler, steps: int) -> Sampler:
    """Whether DPM-Solver++ ends a part with lower orders is decided by the length of the whole run."""
    uses_lower_order = sampler.solver_options.get("lower_order_final_sigma") is not None and sampler.solver.startswith(
        "dpmpp"
    )
    return (
        replace(sampler, solver_options={**sampler.solver_options, "lower_order_final_sigma": None})
        if uses_lower_order and steps >= LOWER_ORDER_MAX_STEPS
        else sampler
    )


def _slice_heun(sigma_schedule: SigmaSchedule, first_call: int, stop_call: int) -> tuple[SigmaSchedule, Solver]:
    first_step, num_calls = (first_call + 1) // 2, stop_call - first_call
    if stop_call == 2 * sigma_schedule.steps - 1:
        return sigma_schedule.subrange(first_step), SOLVERS["heun"]
    if num_calls % 2 == 0:
        return sigma_schedule.subrange(first_step, first_step + num_calls // 2), SOLVERS["heun"]
    return sigma_schedule.subrange(first_step, first_step + num_calls // 2 + 1), heun_with_euler_end


def _slice_plms(sigma_schedule: SigmaSchedule, first_call: int, stop_call: int) -> tuple[SigmaSchedule, Solver]:
    first_step = min(first_call, max(first_call - 1, 1))  # the entries are those of the levels 0, 1, 1, 2, 3 ...
    if stop_call - first_call == 1:
        return sigma_schedule.subrange(first_step, first_step + 1), SOLVERS["euler"]
    sliced = sigma_schedule.subrange(first_step, stop_call - 1)
    if first_call == 0:
        return sliced, SOLVERS["plms" if stop_call > 2 else "heun"]
    return sliced, partial(
        plms_resumed_at_second, previous_sigma=sigma_schedule.sigmas[0]
    ) if first_call == 1 else plms_resumed_at_third


def _reported_steps(sampler: Sampler, call_timesteps: Tensor, num_warmup_calls: int = 0) -> list[ReportedStep]:
    """The step's number and time after each call that ends a step; the first `ahead` calls of PNDM end none."""
    order = 2 if sampler.solver == "heun" else 1
    num_warmup_calls = 0 if order == 2 else num_warmup_calls
    timesteps = call_timesteps.round().long() if sampler.variance_preserving else call_timesteps.float()
    last = len(timesteps) - 1
    return [
        (i // order, t)
        for i, t in enumerate(timesteps)
        if i == last or (i >= num_warmup_calls and (i + 1) % order == 0)
    ]
