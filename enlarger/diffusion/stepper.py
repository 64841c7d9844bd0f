"""A solver driven from outside, one call of the network at a time, as the loops of diffusers drive a scheduler."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Solver, Step, Steps

Estimate = Callable[[Tensor, Tensor], Tensor]  # the denoised estimate, from latents and noise level
REPLAYED = 16  # calls that are remembered; more lie within no step


@dataclass(frozen=True, eq=False)
class Advance:
    """Latents to call the network with next, the estimate they came from, and their noise level.

    `inside`: the step is not done, they are the guess that it needs another call for.
    """

    x: Tensor
    denoised: Tensor
    sigma: Tensor
    inside: bool


class _Suspended(Exception):
    def __init__(self, x: Tensor, sigma: Tensor) -> None:
        super().__init__("the solver asks for a call that has not been made yet")
        self.x, self.sigma = x, sigma


class Stepper:
    """Runs a solver's generator over `sigmas`, calling the network whenever `advance` is called.

    A generator cannot be stopped inside a call. Where a step needs a second one, the generator is given up and the
    calls so far are replayed to a new one when the second is answered. `by_slope` says that a solver reads the second
    estimate as the slope at the latents it was made for.
    """

    def __init__(self, solver: Solver, sigmas: Tensor, by_slope: bool = True) -> None:
        self._solver, self._sigmas, self._by_slope = solver, sigmas, by_slope
        self._calls: list[tuple[Tensor, Tensor]] = []  # latents and estimates, oldest first
        self._draws: list[Tensor] = []
        self._running: Steps | None = None
        self._step: Step | None = None
        self._at = self._drawn = 0  # calls answered and draws given to the generator that runs
        self._asked: tuple[Tensor, Estimate] | None = None
        self._noise: Noise | None = None
        self._first = True  # of its step is the call that is to be answered

    def advance(self, x: Tensor, estimate: Estimate, noise: Noise) -> Advance:
        """Answer the next call, made with the latents `x`, and run on to the one after it."""
        self._asked, self._noise = (x, estimate), noise
        if self._running is None:
            start = self._calls[0][0] if self._calls else x
            self._running = self._solver(self._denoise, start, self._sigmas, self._draw)
            self._at = self._drawn = 0
            self._step = None
        try:
            while True:
                self._first = True
                step = self._resume(self._running, self._calls[self._at][0] if self._at < len(self._calls) else x)
                if self._asked is None:  # pyright: ignore[reportUnnecessaryComparison] - the generator has answered it
                    return Advance(step.x, step.denoised, step.sigma, False)
        except _Suspended as stop:
            self._running = None
            return Advance(stop.x, self._calls[-1][1], stop.sigma, True)

    def _resume(self, running: Steps, x: Tensor) -> Step:
        """The next step, from the latents `x`, which may not be those that the last one yielded."""
        self._step = next(running) if self._step is None else running.send(x)
        return self._step

    def _denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        first, self._first = self._first, False
        if self._at == len(self._calls) or self._at >= REPLAYED:
            if self._asked is None:
                raise _Suspended(x, sigma)
            (given, estimate), self._asked = self._asked, None
            denoised = estimate(x if first else given, sigma)
            if not first and self._by_slope:
                denoised = denoised + (x - given)
            if self._at < REPLAYED:
                self._calls.append((given, denoised))
            self._at += 1
            return denoised
        self._at += 1
        return self._calls[self._at - 1][1]

    def _draw(self, like: Tensor) -> Tensor:
        assert self._noise is not None, "advance comes first"
        if self._drawn < len(self._draws):
            self._drawn += 1
            return self._draws[self._drawn - 1]
        drawn = self._noise(like)
        if self._drawn < REPLAYED:
            self._draws.append(drawn)
        self._drawn += 1
        return drawn
