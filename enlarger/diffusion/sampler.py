"""What a scheduler file says: which solver, which ladder, and in which coordinates the latents come and go."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor

from enlarger.diffusion import precondition
from enlarger.diffusion.precondition import Precondition
from enlarger.diffusion.sample import Solver
from enlarger.diffusion.schedule import Clock, Curve, Grid, NoiseSchedule, Rounding, Spacing, check_ladder, rounded
from enlarger.diffusion.solvers import SOLVERS, dpm_adaptive
from enlarger.errors import InputError

Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True, eq=False)
class Course:
    """A ladder, the training times that the network is told on it, and the factors at both its ends.

    `times` (N,) float64 has one, possibly fractional, time for each level above the last, as diffusers lists them.
    `clock` knows them too, and those of levels that a solver visits in between; it stays the same in a part.
    """

    ladder: Tensor  # (N + 1,)
    times: Tensor
    clock: Clock
    preserving: bool = False  # latents are kept at unit variance outside
    widened: bool = False  # pure noise starts with the clean latent's variance added, as for "leading"

    @property
    def start(self) -> float:
        """What turns unit noise into the first latent."""
        first = float(self.ladder[0])
        return (first**2 + 1) ** 0.5 if self.preserving or self.widened else first

    @property
    def end(self) -> float:
        """What turns the last latent into the result."""
        return (float(self.ladder[-1]) ** 2 + 1) ** -0.5 if self.preserving else 1.0

    @property
    def steps(self) -> int:
        return len(self.ladder) - 1

    def part(self, first: int = 0, stop: int | None = None) -> "Course":
        """The steps `first` to `stop` - 1 (None: to the end), over the levels `ladder[first : stop + 1]`."""
        stop = self.steps if stop is None else stop
        if not 0 <= first < stop <= self.steps:
            raise InputError(f"no steps from {first} to {stop}: the course has {self.steps} and a part at least one")
        return replace(self, ladder=self.ladder[first : stop + 1], times=self.times[first:stop])


@dataclass(frozen=True, eq=False)
class Sampler:
    """A noise schedule, a way to space it, a solver, and what the network predicts.

    `preserving` says that latents are kept at unit variance outside, as DDIM, PNDM and DPM-Solver do: pure noise
    starts at sqrt(sigma^2 + 1) and the result is divided by the same of the last level. `last` is the level that the
    ladder ends at. `rounding` is of the times told along a `curve`. `options` are the solver's own arguments.
    """

    schedule: NoiseSchedule
    solver: str = "euler"
    prediction: Prediction = "epsilon"
    spacing: Spacing = "linspace"
    offset: int = 0
    preserving: bool = False
    curve: Curve | None = None
    last: float = 0.0
    grid: Grid = "fractional"
    rounding: Rounding = "none"
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def course(self, steps: int) -> Course:
        """The course for a number of steps."""
        ladder = self.schedule.ladder(steps, self.spacing, self.offset, self.last, self.curve, self.grid)
        if self.spacing == "log_linear":  # there the times only count the steps
            return self.along(ladder, self.schedule.times(steps, "linspace"))
        if self.curve is not None:
            return self.along(ladder, rounded(self.schedule.log_time(ladder[:-1]), self.rounding))
        return self.along(ladder, self.schedule.times(steps, self.spacing, self.offset, self.grid)[: len(ladder) - 1])

    def along(self, ladder: Tensor, times: Tensor | None = None) -> Course:
        """The course down a ladder of one's own; `times` are those told at its levels above the last."""
        ladder = check_ladder(ladder)
        times = self.schedule.log_time(ladder[:-1]) if times is None else times.double()
        if len(times) != len(ladder) - 1:
            raise InputError(f"{len(times)} times for {len(ladder)} noise levels, expected one less than levels")
        clock = Clock(self.schedule, ladder[:-1], times)
        return Course(ladder, times, clock, self.preserving, self.spacing == "leading")

    def precondition(self, course: Course | None = None) -> Precondition:
        """How this checkpoint's network output becomes a clean estimate.

        On a course the network is told the times that the course lists. Without one, times are read off the noise
        levels, which can differ from those listed: by less than 0.01 between the levels of a course, by up to 0.5 where
        diffusers lists rounded ones.
        """
        makers = {
            "epsilon": precondition.epsilon,
            "v_prediction": precondition.velocity,
            "sample": precondition.sample,
        }
        maker = makers[self.prediction]
        if course is not None:
            return maker(course.clock)
        return maker(self.schedule if self.curve is None else Clock(self.schedule, rounding=self.rounding))

    def method(self) -> Solver:
        """The solver with its options."""
        options = {"middle": self.schedule.middle} if self.solver == "pndm" else self.options
        return partial(SOLVERS[self.solver], **options) if options else SOLVERS[self.solver]

    def using(self, solver: str | None) -> "Sampler":
        """The same checkpoint's sampler with another solver by name; None changes nothing."""
        if solver is None or solver == self.solver:
            return self
        if solver not in SOLVERS:
            raise InputError(f"no solver is called {solver!r}; there are {', '.join(SOLVERS)}")
        return replace(self, solver=solver, options={})


def calls(solver: Solver, ladder: Tensor) -> list[float] | None:
    """The noise levels at which a solver calls the network down a ladder, in order.

    None for `dpm_adaptive`, which chooses them by the picture.
    """
    if (solver.func if isinstance(solver, partial) else solver) is dpm_adaptive:
        return None
    seen: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma))
        return x / (sigma**2 + 1)

    def silence(like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    for _ in cast(Solver, solver)(denoise, torch.full((1, 1, 1, 1), float(ladder[0])), ladder, silence):
        pass
    return seen
