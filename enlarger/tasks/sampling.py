"""One run down the ladder, where every task ends: which networks, told what, from which latents, kept where."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from enlarger.diffusion.conditioning import Conditioning, stack_branches
from enlarger.diffusion.denoiser import Denoise, Denoiser
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.precondition import Precondition
from enlarger.diffusion.sample import Solver, Step, sample
from enlarger.diffusion.sampler import SigmaSchedule
from enlarger.errors import NonFinite
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.result import ProgressCallback, no_progress, report_steps, with_bad_weight


@dataclass(frozen=True, eq=False)
class GuidedConditioning:
    """What a network is told of the prompts and, where guidance needs it, of the negative prompts."""

    positive: Conditioning
    negative: Conditioning | None = None
    guidance: Guidance = Guidance()

    def with_fields(self, **fields: Tensor) -> "GuidedConditioning":
        """The same with more fields of `Conditioning`, equal in both branches."""
        negative = None if self.negative is None else replace(self.negative, **fields)
        return replace(self, positive=replace(self.positive, **fields), negative=negative)


@dataclass(frozen=True, eq=False)
class Expert:
    """A network at work down to the noise level `until`, that level included; below it the next one takes over."""

    network: nn.Module
    precondition: Precondition
    conditioning: GuidedConditioning
    handoff_sigma: float = 0.0

    def denoiser(self) -> Denoiser:
        """The network as a solver sees it."""
        conditioning, dtype = self.conditioning, next(self.network.parameters()).dtype
        guided_conditioning = (
            None if conditioning.negative is None else stack_branches(conditioning.negative, conditioning.positive)
        )
        return Denoiser(
            self.network, dtype, self.precondition, conditioning.positive, guided_conditioning, conditioning.guidance
        )


@dataclass(frozen=True, eq=False)
class SamplingPlan:
    """How a run is solved: down which course, by which solver, with noise from where."""

    sigma_schedule: SigmaSchedule
    solver: Solver
    noise: Noise


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
    watch: ProgressCallback = no_progress,
    known_region: KnownRegion | None = None,
) -> Tensor:
    """Latents at the end of the course, (B, C, h, w) float32, in the course's outer coordinates.

    `start` is clean + sigma * noise at the course's first level. Experts come from the highest noise level down; the
    solver sees one network, so that what it remembers of past steps outlasts the change from one to the next.
    """
    sigma_schedule = plan.sigma_schedule
    solver = (
        plan.solver
        if known_region is None
        else _blend_known_region(plan.solver, known_region, sigma_schedule.final_scale)
    )
    with ExitStack() as held_networks:
        callback = report_steps(watch, len(sigma_schedule.sigmas) - 1)
        try:
            x = sample(
                solver,
                _switching_denoiser(experts, runtime, held_networks),
                initial_latents.float(),
                sigma_schedule.sigmas,
                plan.noise,
                callback,
            )
        except NonFinite as error:
            raise with_bad_weight(error, *(expert.network for expert in experts)) from error
    return x * sigma_schedule.final_scale


def _switching_denoiser(experts: Sequence[Expert], runtime: Runtime, held_networks: ExitStack) -> Denoise:
    """One denoiser of several; only the expert at work is held."""
    denoisers = [expert.denoiser() for expert in experts]
    handoff_sigmas = [expert.handoff_sigma for expert in experts]
    active_expert: list[int] = []

    def estimate(x: Tensor, sigma: Tensor) -> Tensor:
        expert = expert_index_at(handoff_sigmas, float(sigma))
        if active_expert != [expert]:
            held_networks.close()
            held_networks.enter_context(runtime.hold(experts[expert].network))
            active_expert[:] = [expert]
        return denoisers[expert](x, sigma)

    return estimate


def expert_index_at(handoff_sigmas: Sequence[float], sigma: float) -> int:
    """Which expert works at a noise level: the first whose `until` is not above it, the last at all that are left."""
    return next(
        (i for i, handoff_sigma in enumerate(handoff_sigmas[:-1]) if sigma >= handoff_sigma), len(handoff_sigmas) - 1
    )


def _blend_known_region(solver: Solver, known_region: KnownRegion, final_scale: float) -> Solver:
    """The solver with the kept latents put back after each step, and under what the network sees in between."""

    def solve(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
        past_first_call = False  # a step, past its first call, whose latents are the caller's or put back already

        def denoise_with_known(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal past_first_call
            is_later_call, past_first_call = past_first_call, True
            return denoise(
                torch.where(known_region.mask > 0, x, known_region.image + sigma * known_region.noise)
                if is_later_call
                else x,
                sigma,
            )

        for step in solver(denoise_with_known, x, sigmas, noise):
            is_last = bool(step.sigma == sigmas[-1])
            known_latents = (
                known_region.image / final_scale if is_last else known_region.image + step.sigma * known_region.noise
            )
            step.x.copy_(torch.lerp(known_latents.float(), step.x, known_region.mask.expand_as(step.x)))
            past_first_call = False
            yield step

    return solve
