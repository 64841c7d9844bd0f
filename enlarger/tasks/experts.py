"""Several networks as one denoiser, by noise level (Balaji et al. 2022), and the plan of who makes which calls."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Solver, Step
from enlarger.diffusion.sampler import network_call_sigmas
from enlarger.errors import InputError
from enlarger.tasks.sampling import expert_index_at


@dataclass(frozen=True)
class NetworkCall:
    """The calls of one network within one step of a run, from the noise level `start` to `stop`."""

    step: int  # counted from 1; 0: the solver chooses its steps
    who: str
    start: float
    stop: float
    calls: int | None  # both branches of a guidance are one call; None: as many as the solver finds it needs


@dataclass(frozen=True)
class SamplingReport:
    """Which network runs which steps; `str` makes it a table. Calls of text encoders and autoencoders do not count."""

    turns: tuple[NetworkCall, ...]
    pictures: int = 1

    @property
    def calls(self) -> int | None:
        """Calls of the diffusion networks for all pictures together; None if a solver chooses them by the picture."""
        counts = [call.calls for call in self.turns if call.calls is not None]
        return sum(counts) * self.pictures if len(counts) == len(self.turns) else None

    def __str__(self) -> str:
        width = max([7, *(len(call.who) for call in self.turns)])
        lines = [f"{'step':>8}  {'network':<{width}}  {'noise level':<18}  calls"]
        for turn in self.turns:
            step = turn.step or "adaptive"
            levels = f"{turn.start:.4f} -> {turn.stop:.4f}"
            lines.append(f"{step:>8}  {turn.who:<{width}}  {levels:<18}  {'-' if turn.calls is None else turn.calls}")
        total = "the solver decides" if self.calls is None else str(self.calls)
        lines.append(f"calls of the networks for {self.pictures} picture{'s' * (self.pictures > 1)}: {total}")
        return "\n".join(lines)


def check_handoff_sigmas(handoffs: Sequence[float]) -> tuple[float, ...]:
    """The level down to which each expert works; InputError unless the hand-offs fall."""
    handoff_sigmas = (*handoffs, 0.0)
    if any(lower >= upper for upper, lower in pairwise(handoffs)):
        shown = ", ".join(f"{level:g}" for level in handoffs)
        raise InputError(f"the hand-offs are at noise levels {shown}, expected falling ones, one per refiner")
    return handoff_sigmas


def trace_network_calls(
    names: Sequence[str], handoff_sigmas: Sequence[float], solver: Solver, sigmas: Tensor
) -> tuple[NetworkCall, ...]:
    """Who makes which calls when `solver` walks down `ladder`; expert i works at levels not below `untils[i]`."""
    call_sigmas = network_call_sigmas(solver, sigmas)
    if call_sigmas is None:
        return _adaptive_calls(names, handoff_sigmas, float(sigmas[0]), float(sigmas[-1]))
    step_ends = _step_ends(solver, sigmas)
    network_calls: list[NetworkCall] = []
    start, before = float(sigmas[0]), 0
    for step, (stop, count) in enumerate(step_ends, 1):
        experts = (expert_index_at(handoff_sigmas, level) for level in call_sigmas[before:count])
        network_calls += [NetworkCall(step, names[i], start, stop, len(list(made))) for i, made in groupby(experts)]
        start, before = stop, count
    return tuple(network_calls)


def _step_ends(solver: Solver, sigmas: Tensor) -> list[tuple[float, int]]:
    """The level that each step reaches, and how many calls have been made by then."""
    step_ends: list[tuple[float, int]] = []

    def recording_solver(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
        count = 0

        def counting_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return denoise(x, sigma)

        for step in solver(counting_denoiser, x, sigmas, noise):
            step_ends.append((float(step.sigma), count))
            yield step

    network_call_sigmas(recording_solver, sigmas)
    return step_ends


def _adaptive_calls(
    names: Sequence[str], handoff_sigmas: Sequence[float], first: float, last: float
) -> tuple[NetworkCall, ...]:
    """The noise levels of each expert, where the solver chooses its steps."""
    starts = [first, *(min(first, handoff_sigma) for handoff_sigma in handoff_sigmas[:-1])]
    stops = [*(max(last, until) for until in handoff_sigmas[:-1]), last]
    return tuple(
        NetworkCall(0, name, start, stop, None)
        for name, start, stop in zip(names, starts, stops, strict=True)
        if start > stop
    )
