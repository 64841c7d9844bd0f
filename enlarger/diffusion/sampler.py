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
    """A ladder with the factors that turn unit noise into its first latent and its last latent into the result."""

    ladder: Tensor
    start: float
    end: float


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
        return self.along(self.schedule.ladder(steps, self.spacing, self.offset, self.last, self.curve))

    def along(self, ladder: Tensor) -> Course:
        """The course down a ladder of one's own."""
        ladder = check_ladder(ladder)
        first = float(ladder[0])
        start = (first**2 + 1) ** 0.5 if self.preserving or self.spacing == "leading" else first
        return Course(ladder, start, (float(ladder[-1]) ** 2 + 1) ** -0.5 if self.preserving else 1.0)

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
