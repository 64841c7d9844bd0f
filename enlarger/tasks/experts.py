"""Several networks as one denoiser, by noise level (Balaji et al. 2022), and the plan of who makes which calls."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from torch import Tensor

from enlarger.diffusion.sample import Solver
from enlarger.diffusion.sampler import trace_steps
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
    steps = trace_steps(solver, sigmas)
    if steps is None:
        return _adaptive_calls(names, handoff_sigmas, float(sigmas[0]), float(sigmas[-1]))
    network_calls: list[NetworkCall] = []
    start = float(sigmas[0])
    for step, (stop, called_sigmas) in enumerate(steps, 1):
        experts = (expert_index_at(handoff_sigmas, sigma) for sigma in called_sigmas)
        network_calls += [NetworkCall(step, names[i], start, stop, len(list(made))) for i, made in groupby(experts)]
        start = stop
    return tuple(network_calls)


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
