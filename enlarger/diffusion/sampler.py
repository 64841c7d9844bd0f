"""What a scheduler file says: which solver, which sigmas, and in which coordinates the latents come and go."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from enlarger.diffusion import precondition
from enlarger.diffusion.precondition import Precondition
from enlarger.diffusion.sample import Solver, walk
from enlarger.diffusion.schedule import (
    NoiseSchedule,
    SigmaCurve,
    TimestepGrid,
    TimestepMap,
    TimestepRounding,
    TimestepSpacing,
    check_sigmas,
    round_timesteps,
)
from enlarger.diffusion.solvers import SOLVERS, dpm_adaptive
from enlarger.errors import InputError
from enlarger.sampler_names import parse_sampler

Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True, eq=False)
class SigmaSchedule:
    """Falling noise levels, their timesteps, and the factors that latents have at both ends.

    `timesteps` (N,) float64 has one, possibly fractional, for each level above the last, as diffusers lists them.
    `timestep_map` knows them too, and those of levels that a solver visits in between; a subrange has the same.
    """

    sigmas: Tensor  # (N + 1,)
    timesteps: Tensor
    timestep_map: TimestepMap
    variance_preserving: bool = False  # latents are kept at unit variance outside
    leading_init_scale: bool = False  # pure noise starts with the clean latent's variance added, as for "leading"

    @property
    def init_noise_sigma(self) -> float:
        """What turns unit noise into the first latent."""
        first = float(self.sigmas[0])
        return (first**2 + 1) ** 0.5 if self.variance_preserving or self.leading_init_scale else first

    @property
    def final_scale(self) -> float:
        """What turns the last latent into the result."""
        return (float(self.sigmas[-1]) ** 2 + 1) ** -0.5 if self.variance_preserving else 1.0

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def subrange(self, first: int = 0, stop: int | None = None) -> "SigmaSchedule":
        """The steps `first` to `stop` - 1 (None: to the end), over the levels `sigmas[first : stop + 1]`."""
        stop = self.steps if stop is None else stop
        if not 0 <= first < stop <= self.steps:
            raise InputError(
                f"no steps from {first} to {stop}: the schedule has {self.steps} and a subrange at least one"
            )
        return replace(self, sigmas=self.sigmas[first : stop + 1], timesteps=self.timesteps[first:stop])


@dataclass(frozen=True, eq=False)
class Sampler:
    """A noise schedule, a way to space it, a solver, and what the network predicts.

    `variance_preserving` says that latents are kept at unit variance outside, as DDIM, PNDM and DPM-Solver do: pure
    noise starts at sqrt(sigma^2 + 1) and the result is divided by the same of the last level, `final_sigma`.
    `timestep_rounding` is of the timesteps along a `sigma_curve`. `solver_options` are the solver's own arguments.
    """

    schedule: NoiseSchedule
    solver: str = "euler"
    prediction: Prediction = "epsilon"
    timestep_spacing: TimestepSpacing = "linspace"
    steps_offset: int = 0
    variance_preserving: bool = False
    sigma_curve: SigmaCurve | None = None
    final_sigma: float = 0.0
    timestep_grid: TimestepGrid = "fractional"
    timestep_rounding: TimestepRounding = "none"
    solver_options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def sigma_schedule(self, steps: int) -> SigmaSchedule:
        """The noise levels for a number of steps."""
        sigmas = self.schedule.sampling_sigmas(
            steps, self.timestep_spacing, self.steps_offset, self.final_sigma, self.sigma_curve, self.timestep_grid
        )
        if self.timestep_spacing == "log_linear":  # there the times only count the steps
            return self.schedule_from_sigmas(sigmas, self.schedule.timesteps(steps, "linspace"))
        if self.sigma_curve is not None:
            return self.schedule_from_sigmas(
                sigmas, round_timesteps(self.schedule.time_by_log_sigma(sigmas[:-1]), self.timestep_rounding)
            )
        return self.schedule_from_sigmas(
            sigmas,
            self.schedule.timesteps(steps, self.timestep_spacing, self.steps_offset, self.timestep_grid)[
                : len(sigmas) - 1
            ],
        )

    def schedule_from_sigmas(self, sigmas: Tensor, timesteps: Tensor | None = None) -> SigmaSchedule:
        """The schedule of one's own sigmas; `timesteps` are those of the levels above the last."""
        sigmas = check_sigmas(sigmas)
        timesteps = self.schedule.time_by_log_sigma(sigmas[:-1]) if timesteps is None else timesteps.double()
        if len(timesteps) != len(sigmas) - 1:
            raise InputError(f"{len(timesteps)} times for {len(sigmas)} noise levels, expected one less than levels")
        timestep_map = TimestepMap(self.schedule, sigmas[:-1], timesteps)
        return SigmaSchedule(
            sigmas, timesteps, timestep_map, self.variance_preserving, self.timestep_spacing == "leading"
        )

    def precondition(self, sigma_schedule: SigmaSchedule | None = None) -> Precondition:
        """How this checkpoint's network output becomes a denoised estimate.

        The network takes the timesteps that a sigma schedule lists. Without one, they are read off the noise levels,
        which can differ from those listed: by less than 0.01 between the levels of a schedule, by up to 0.5 where
        diffusers lists rounded ones.
        """
        factories = {
            "epsilon": precondition.epsilon,
            "v_prediction": precondition.velocity,
            "sample": precondition.sample,
        }
        factory = factories[self.prediction]
        if sigma_schedule is not None:
            return factory(sigma_schedule.timestep_map)
        return factory(
            self.schedule
            if self.sigma_curve is None
            else TimestepMap(self.schedule, timestep_rounding=self.timestep_rounding)
        )

    def make_solver(self) -> Solver:
        """The solver with its options."""
        options = {"midpoint": self.schedule.midpoint_sigma} if self.solver == "pndm" else self.solver_options
        return partial(SOLVERS[self.solver], **options) if options else SOLVERS[self.solver]

    def with_solver(self, solver: str | None, spacing: str | None = None) -> "Sampler":
        """The same checkpoint's sampler with another solver and spacing by `sampler_names`; None changes nothing."""
        name, space = parse_sampler(solver, spacing)
        sampler = self if space is None else self._with_spacing(space)
        return sampler if name in (None, self.solver) else replace(sampler, solver=name, solver_options={})

    def _with_spacing(self, spacing: str) -> "Sampler":
        """Spaced along a curve over all the training sigmas, as k-diffusion does; or over the training times."""
        if spacing in get_args(SigmaCurve):
            return replace(
                self, timestep_spacing="linspace", timestep_grid="one_more", timestep_rounding="none", final_sigma=0.0,
                sigma_curve=cast("SigmaCurve", spacing),
            )  # fmt: skip
        return replace(self, timestep_spacing=cast("TimestepSpacing", spacing), sigma_curve=None)


def network_call_sigmas(solver: Solver, sigmas: Tensor) -> list[float] | None:
    """The noise levels at which a solver calls the network on its way down `sigmas`, in order.

    None for `dpm_adaptive`, which chooses them by the picture.
    """
    steps = trace_steps(solver, sigmas)
    return None if steps is None else [sigma for _, called_sigmas in steps for sigma in called_sigmas]


def trace_steps(solver: Solver, sigmas: Tensor) -> list[tuple[float, list[float]]] | None:
    """For each step of a solver the noise level that it reaches and those at which it calls the network.

    None for `dpm_adaptive`, which chooses them by the picture.
    """
    if (solver.func if isinstance(solver, partial) else solver) is dpm_adaptive:
        return None
    called_sigmas: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        called_sigmas.append(float(sigma))
        return x / (sigma**2 + 1)

    def zero_noise(like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    steps: list[tuple[float, list[float]]] = []
    start = torch.full((1, 1, 1, 1), float(sigmas[0]))
    for step in walk(cast("Solver", solver), denoise, start, sigmas, zero_noise):
        steps.append((float(step.sigma), called_sigmas[:]))
        called_sigmas.clear()
    return steps
