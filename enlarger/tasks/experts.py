"""Several networks as one denoiser, by noise level (Balaji et al. 2022), and the plan of who makes which calls."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Solver, Step
from enlarger.diffusion.sampler import calls
from enlarger.errors import InputError
from enlarger.tasks.denoise import expert_at


@dataclass(frozen=True)
class Turn:
    """The calls of one network within one step of a run, from the noise level `start` to `stop`."""

    step: int  # counted from 1; 0: the solver chooses its steps
    who: str
    start: float
    stop: float
    calls: int | None  # both branches of a guidance are one call; None: as many as the solver finds it needs


@dataclass(frozen=True)
class Plan:
    """Which network runs which steps; `str` makes it a table. Calls of text encoders and autoencoders do not count."""

    turns: tuple[Turn, ...]
    pictures: int = 1

    @property
    def calls(self) -> int | None:
        """Calls of the diffusion networks for all pictures together; None if a solver chooses them by the picture."""
        counts = [turn.calls for turn in self.turns if turn.calls is not None]
        return sum(counts) * self.pictures if len(counts) == len(self.turns) else None

    def __str__(self) -> str:
        wide = max([7, *(len(turn.who) for turn in self.turns)])
        lines = [f"{'step':>8}  {'network':<{wide}}  {'noise level':<18}  calls"]
        for turn in self.turns:
            step = turn.step or "adaptive"
            levels = f"{turn.start:.4f} -> {turn.stop:.4f}"
            lines.append(f"{step:>8}  {turn.who:<{wide}}  {levels:<18}  {'-' if turn.calls is None else turn.calls}")
        total = "the solver decides" if self.calls is None else str(self.calls)
        lines.append(f"calls of the networks for {self.pictures} picture{'s' * (self.pictures > 1)}: {total}")
        return "\n".join(lines)


def untils_of(handoffs: Sequence[float]) -> tuple[float, ...]:
    """The level down to which each expert works; InputError unless the hand-offs fall."""
    untils = (*handoffs, 0.0)
    if any(lower >= upper for upper, lower in pairwise(handoffs)):
        shown = ", ".join(f"{level:g}" for level in handoffs)
        raise InputError(f"the hand-offs are at noise levels {shown}, expected falling ones, one per refiner")
    return untils


def turns_of(names: Sequence[str], untils: Sequence[float], solver: Solver, ladder: Tensor) -> tuple[Turn, ...]:
    """Who makes which calls when `solver` walks down `ladder`; expert i works at levels not below `untils[i]`."""
    levels = calls(solver, ladder)
    if levels is None:
        return _ranges(names, untils, float(ladder[0]), float(ladder[-1]))
    reached = _reached(solver, ladder)
    turns: list[Turn] = []
    start, before = float(ladder[0]), 0
    for step, (stop, count) in enumerate(reached, 1):
        who = (expert_at(untils, level) for level in levels[before:count])
        turns += [Turn(step, names[i], start, stop, len(list(made))) for i, made in groupby(who)]
        start, before = stop, count
    return tuple(turns)


def _reached(solver: Solver, ladder: Tensor) -> list[tuple[float, int]]:
    """The level that each step reaches, and how many calls have been made by then."""
    marks: list[tuple[float, int]] = []

    def marking(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
        count = 0

        def counted(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return denoise(x, sigma)

        for step in solver(counted, x, sigmas, noise):
            marks.append((float(step.sigma), count))
            yield step

    calls(marking, ladder)
    return marks


def _ranges(names: Sequence[str], untils: Sequence[float], first: float, last: float) -> tuple[Turn, ...]:
    """The noise levels of each expert, where the solver chooses its steps."""
    starts = [first, *(min(first, until) for until in untils[:-1])]
    stops = [*(max(last, until) for until in untils[:-1]), last]
    return tuple(
        Turn(0, name, start, stop, None) for name, start, stop in zip(names, starts, stops, strict=True) if start > stop
    )
