"""One run over falling noise levels, where every task ends: by which networks and solver, and who makes which calls."""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, pairwise

import torch
from torch import Tensor, nn

from enlarger.checkpoint.tensors.finite_check import find_first_non_finite
from enlarger.diffusion.denoiser import Denoise, Denoiser
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.precondition import Precondition
from enlarger.diffusion.prepared import PreparedNetwork
from enlarger.diffusion.sample import OnStep, Solver, Step, sample, unchanged
from enlarger.diffusion.sampler import SigmaSchedule, trace_steps
from enlarger.diffusion.windows import WindowedDenoiser, Windows
from enlarger.errors import InputError, NonFinite
from enlarger.runtime.engines.engine import Call
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.latent_diffusion.conditioning import GuidedConditioning
from enlarger.tasks.latent_diffusion.float32_retry import attempts


@dataclass(frozen=True, eq=False)
class Expert:
    """A network at work down to the noise level `handoff_sigma`, included; below it the next one takes over."""

    network: nn.Module
    precondition: Precondition
    conditioning: GuidedConditioning
    handoff_sigma: float = 0.0

    def denoiser(
        self, call: Call, device: torch.device, before_call: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> Denoiser:
        """The network as a solver sees it on a device, by a `call` of it; `before_call` changes the latents it sees."""
        dtype = next(self.network.parameters()).dtype
        alone, guided = self.conditioning.branches()
        return Denoiser(
            PreparedNetwork(call),
            dtype,
            self.precondition,
            alone.cast(device, dtype),
            None if guided is None else guided.cast(device, dtype),
            self.conditioning.guidance,
            before_call,
        )


@dataclass(frozen=True, eq=False)
class SamplingPlan:
    """How a run is solved: on which sigma schedule, by which solver, with noise from where, in which windows."""

    sigma_schedule: SigmaSchedule
    solver: Solver
    noise: Noise
    windows: Windows | None = None  # None: every call sees the whole latent


@dataclass(frozen=True, eq=False)
class KnownRegion:
    """What stays as it is: where `mask` (B, 1, h, w) is 0 the latents are `image`, with `noise` of the level at hand.

    Between 0 and 1 both mix after each step. Everything is (B, C, h, w), `image` without noise.
    """

    image: Tensor
    noise: Tensor
    mask: Tensor


def sample_latents(
    experts: Sequence[Expert],
    initial_latents: Tensor,
    plan: SamplingPlan,
    runtime: Runtime,
    on_step: OnStep = unchanged,
    known_region: KnownRegion | None = None,
) -> Tensor:
    """Latents at the end of the sigma schedule, (B, C, h, w) float32, scaled as they are outside.

    `initial_latents` are clean + sigma * noise at the first level. Experts come from the highest noise level down; the
    solver sees one network, so that what it remembers of past steps outlasts the change from one to the next. `on_step`
    sees each step after the known region is put back.
    """
    sigma_schedule, x = plan.sigma_schedule, initial_latents.float()
    networks = [expert.network for expert in experts]
    for attempt in attempts(networks, plan):
        with attempt, hold_denoiser(experts, plan, runtime, on_step, known_region) as (denoise, after_step):
            return sigma_schedule.final_scale * sample(
                plan.solver, denoise, x, sigma_schedule.sigmas, plan.noise, after_step
            )
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def hold_denoiser(
    experts: Sequence[Expert], plan: SamplingPlan, runtime: Runtime, on_step: OnStep, known_region: KnownRegion | None
) -> Generator[tuple[Denoise, OnStep]]:
    """What a solver sees of the experts for the length of the block, and what follows each of its steps."""
    before_call = None
    if known_region is not None:
        before_call, on_step = _known_region_hooks(known_region, plan.sigma_schedule, on_step)
    try:
        with ExitStack() as held_networks:

            def hold(expert: Expert) -> Denoise:
                call = held_networks.enter_context(runtime.run(expert.network, repeated=True))
                denoiser = expert.denoiser(call, runtime.device, before_call)
                held_networks.push(partial(_raise_overflow, denoiser))
                return _in_windows(denoiser, plan.windows)

            denoise = hold(experts[0]) if len(experts) == 1 else _switching_denoiser(experts, hold, held_networks)
            yield denoise, on_step
    except NonFinite as error:
        raise with_bad_weight(error, *(expert.network for expert in experts)) from error


def _raise_overflow(denoiser: Denoiser, kind: object, error: BaseException | None, trace: object) -> None:
    """At the end of a run, also one that ended without a number: the first overflow that was not looked for yet."""
    overflow = denoiser.finite_check.settle() if error is None or isinstance(error, NonFinite) else None
    if overflow is not None:
        raise overflow


def _in_windows(denoiser: Denoiser, windows: Windows | None) -> Denoise:
    return denoiser if windows is None else WindowedDenoiser(denoiser, windows)


def _switching_denoiser(
    experts: Sequence[Expert], hold: Callable[[Expert], Denoise], held_networks: ExitStack
) -> Denoise:
    """One denoiser of several; only the expert at work is held."""
    handoff_sigmas = [expert.handoff_sigma for expert in experts]
    active: tuple[int, Denoise] | None = None

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal active
        index = expert_index_at(handoff_sigmas, float(sigma))
        if active is None or active[0] != index:
            held_networks.close()
            active = index, hold(experts[index])
        return active[1](x, sigma)

    return denoise


def expert_index_at(handoff_sigmas: Sequence[float], sigma: float) -> int:
    """Which expert works at a noise level: the first whose `handoff_sigma` is not above it, at last the last."""
    return next(
        (i for i, handoff_sigma in enumerate(handoff_sigmas[:-1]) if sigma >= handoff_sigma), len(handoff_sigmas) - 1
    )


def _known_region_hooks(
    known_region: KnownRegion, sigma_schedule: SigmaSchedule, on_step: OnStep
) -> tuple[Callable[[Tensor, Tensor], Tensor], OnStep]:
    """What puts the known latents into what the network sees in the midst of a step, and back after each, before
    `on_step`.

    At the first call of a step the latents are the caller's, or have them already.
    """
    is_first_call = True

    def with_known(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal is_first_call
        if not is_first_call:
            x = torch.where(known_region.mask > 0, x, known_region.image + sigma * known_region.noise)
        is_first_call = False
        return x

    def blend(step: Step) -> Tensor:
        nonlocal is_first_call
        is_first_call = True
        if step.sigma == sigma_schedule.sigmas[-1]:
            known_latents = known_region.image / sigma_schedule.final_scale
        else:
            known_latents = known_region.image + step.sigma * known_region.noise
        x = torch.lerp(known_latents.float(), step.x, known_region.mask.expand_as(step.x))
        return on_step(replace(step, x=x))

    return with_known, blend


def with_bad_weight(error: NonFinite, *networks: nn.Module) -> NonFinite:
    """The error; or, if a network has a weight that is no number, one that names it."""
    name = next((name for network in networks if (name := find_first_non_finite(network)) is not None), None)
    return error if name is None else NonFinite(f"the weight {name} holds NaN or infinity; fetch the file again")


@dataclass(frozen=True)
class NetworkCalls:
    """The calls of one network within one step of a run, from the noise level `start` to `stop`."""

    step: int  # counted from 1; 0: the solver chooses its steps
    who: str
    start: float
    stop: float
    count: int | None  # both branches of a guidance are one call; None: as many as the solver finds it needs


@dataclass(frozen=True)
class SamplingReport:
    """Which network runs which steps; `str` makes it a table. Calls of text encoders and autoencoders do not count."""

    network_calls: tuple[NetworkCalls, ...]
    pictures: int = 1

    @property
    def calls(self) -> int | None:
        """Calls of the diffusion networks for all pictures together; None if a solver chooses them by the picture."""
        counts = [call.count for call in self.network_calls if call.count is not None]
        return sum(counts) * self.pictures if len(counts) == len(self.network_calls) else None

    def __str__(self) -> str:
        width = max([7, *(len(call.who) for call in self.network_calls)])
        lines = [f"{'step':>8}  {'network':<{width}}  {'noise level':<18}  calls"]
        for call in self.network_calls:
            step = call.step or "adaptive"
            levels = f"{call.start:.4f} -> {call.stop:.4f}"
            lines.append(f"{step:>8}  {call.who:<{width}}  {levels:<18}  {'-' if call.count is None else call.count}")
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
) -> tuple[NetworkCalls, ...]:
    """Who makes which calls as `solver` goes down `sigmas`; expert i works down to `handoff_sigmas[i]`."""
    steps = trace_steps(solver, sigmas)
    if steps is None:
        return _adaptive_calls(names, handoff_sigmas, float(sigmas[0]), float(sigmas[-1]))
    network_calls: list[NetworkCalls] = []
    start = float(sigmas[0])
    for step, (stop, called_sigmas) in enumerate(steps, 1):
        experts = (expert_index_at(handoff_sigmas, sigma) for sigma in called_sigmas)
        network_calls += [NetworkCalls(step, names[i], start, stop, len(list(made))) for i, made in groupby(experts)]
        start = stop
    return tuple(network_calls)


def _adaptive_calls(
    names: Sequence[str], handoff_sigmas: Sequence[float], first: float, last: float
) -> tuple[NetworkCalls, ...]:
    """The noise levels of each expert, where the solver chooses its steps."""
    starts = [first, *(min(first, handoff_sigma) for handoff_sigma in handoff_sigmas[:-1])]
    stops = [*(max(last, handoff_sigma) for handoff_sigma in handoff_sigmas[:-1]), last]
    return tuple(
        NetworkCalls(0, name, start, stop, None)
        for name, start, stop in zip(names, starts, stops, strict=True)
        if start > stop
    )
