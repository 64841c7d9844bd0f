"""One run down the ladder, where every task ends: which networks, told what, from which latents, kept where."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from enlarger.diffusion.conditioning import Conditioning, stack_branches
from enlarger.diffusion.denoiser import Denoise, Denoiser
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.precondition import Precondition
from enlarger.diffusion.sample import OnStep, Solver, Step, sample, unchanged
from enlarger.diffusion.sampler import SigmaSchedule
from enlarger.errors import NonFinite
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.result import with_bad_weight


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
    on_step: OnStep = unchanged,
    known_region: KnownRegion | None = None,
) -> Tensor:
    """Latents at the end of the sigma schedule, (B, C, h, w) float32, scaled as they are outside.

    `initial_latents` are clean + sigma * noise at the first level. Experts come from the highest noise level down; the
    solver sees one network, so that what it remembers of past steps outlasts the change from one to the next. `on_step`
    sees each step after the known region is put back.
    """
    sigmas, final_scale = plan.sigma_schedule.sigmas, plan.sigma_schedule.final_scale
    with ExitStack() as held_networks:
        if len(experts) == 1:
            denoise = experts[0].denoiser()
            held_networks.enter_context(runtime.hold(experts[0].network))
        else:
            denoise = _switching_denoiser(experts, runtime, held_networks)
        if known_region is not None:
            denoise, on_step = _blend_known_region(denoise, on_step, known_region, sigmas[-1], final_scale)
        try:
            x = sample(plan.solver, denoise, initial_latents.float(), sigmas, plan.noise, on_step)
        except NonFinite as error:
            raise with_bad_weight(error, *(expert.network for expert in experts)) from error
    return x * final_scale


def _switching_denoiser(experts: Sequence[Expert], runtime: Runtime, held_networks: ExitStack) -> Denoise:
    """One denoiser of several; only the expert at work is held."""
    denoisers = [expert.denoiser() for expert in experts]
    handoff_sigmas = [expert.handoff_sigma for expert in experts]
    active: int | None = None

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal active
        index = expert_index_at(handoff_sigmas, float(sigma))
        if active != index:
            held_networks.close()
            held_networks.enter_context(runtime.hold(experts[index].network))
            active = index
        return denoisers[index](x, sigma)

    return denoise


def expert_index_at(handoff_sigmas: Sequence[float], sigma: float) -> int:
    """Which expert works at a noise level: the first whose `until` is not above it, the last at all that are left."""
    return next(
        (i for i, handoff_sigma in enumerate(handoff_sigmas[:-1]) if sigma >= handoff_sigma), len(handoff_sigmas) - 1
    )


def _blend_known_region(
    denoise: Denoise, on_step: OnStep, known_region: KnownRegion, last_sigma: Tensor, final_scale: float
) -> tuple[Denoise, OnStep]:
    """What puts the known latents back after each step, before `on_step`, and under what the network sees in between.

    At the first call of a step the latents are the caller's, or have them already.
    """
    is_first_call = True

    def denoise_with_known(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal is_first_call
        if not is_first_call:
            x = torch.where(known_region.mask > 0, x, known_region.image + sigma * known_region.noise)
        is_first_call = False
        return denoise(x, sigma)

    def blend(step: Step) -> Tensor:
        nonlocal is_first_call
        is_first_call = True
        if step.sigma == last_sigma:
            known_latents = known_region.image / final_scale
        else:
            known_latents = known_region.image + step.sigma * known_region.noise
        x = torch.lerp(known_latents.float(), step.x, known_region.mask.expand_as(step.x))
        return on_step(replace(step, x=x))

    return denoise_with_known, blend
