"""What a scheduler file says: which solver, which ladder, and in which coordinates the latents come and go."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from enlarger.diffusion import precondition
from enlarger.diffusion.precondition import Precondition
from enlarger.diffusion.schedule import Curve, NoiseSchedule, Spacing, check_ladder
from enlarger.diffusion.solvers import SOLVERS
from enlarger.errors import InputError

Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True, eq=False)
class Course:
    """A ladder, the training times that the network is told on it, and the factors at both its ends.

    `times` (N,) float64 has one, possibly fractional, time for each level above the last, as diffusers lists them.
    """

    ladder: Tensor  # (N + 1,)
    times: Tensor
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
    ladder ends at.
    """

    schedule: NoiseSchedule
    solver: str = "euler"
    prediction: Prediction = "epsilon"
    spacing: Spacing = "linspace"
    offset: int = 0
    preserving: bool = False
    curve: Curve | None = None
    last: float = 0.0

    def course(self, steps: int) -> Course:
        """The course for a number of steps."""
        ladder = self.schedule.ladder(steps, self.spacing, self.offset, self.last, self.curve)
        course = self.along(ladder)
        if self.spacing == "log_linear":  # there the times only count the steps
            return replace(course, times=self.schedule.times(steps, "linspace"))
        return course

    def along(self, ladder: Tensor) -> Course:
        """The course down a ladder of one's own."""
        ladder = check_ladder(ladder)
        return Course(ladder, self.schedule.time(ladder[:-1]), self.preserving, self.spacing == "leading")

    def precondition(self) -> Precondition:
        """How this checkpoint's network output becomes a clean estimate."""
        makers = {
            "epsilon": precondition.epsilon,
            "v_prediction": precondition.velocity,
            "sample": precondition.sample,
        }
        return makers[self.prediction](self.schedule)

    def using(self, solver: str | None) -> "Sampler":
        """The same checkpoint's sampler with another solver by name; None changes nothing."""
        if solver is None or solver == self.solver:
            return self
        if solver not in SOLVERS:
            raise InputError(f"no solver is called {solver!r}; there are {', '.join(SOLVERS)}")
        return replace(self, solver=solver)
