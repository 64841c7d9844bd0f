"""One run down the ladder, where every task ends: which networks, told what, from which latents, kept where."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from enlarger.diffusion.conditioning import Conditioning, stack
from enlarger.diffusion.denoiser import Denoise, Denoiser
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.precondition import Precondition
from enlarger.diffusion.sample import Solver, Step, sample
from enlarger.diffusion.sampler import Course
from enlarger.errors import NonFinite
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.parts import Watch, blamed, quiet, watch_steps


@dataclass(frozen=True, eq=False)
class Told:
    """What a network is told of the prompts and, where guidance needs it, of the negative prompts."""

    positive: Conditioning
    negative: Conditioning | None = None
    guidance: Guidance = Guidance()

    def beside(self, **fields: Tensor) -> "Told":
        """The same with more fields of `Conditioning`, equal in both branches."""
        negative = None if self.negative is None else replace(self.negative, **fields)
        return replace(self, positive=replace(self.positive, **fields), negative=negative)


@dataclass(frozen=True, eq=False)
class Expert:
    """A network at work down to the noise level `until`, that level included; below it the next one takes over."""

    network: nn.Module
    precondition: Precondition
    told: Told
    until: float = 0.0

    def denoiser(self) -> Denoiser:
        """The network as a solver sees it."""
        told, dtype = self.told, next(self.network.parameters()).dtype
        both = None if told.negative is None else stack(told.negative, told.positive)
        return Denoiser(self.network, dtype, self.precondition, told.positive, both, told.guidance)


@dataclass(frozen=True, eq=False)
class Method:
    """How a run is solved: down which course, by which solver, with noise from where."""

    course: Course
    solver: Solver
    noise: Noise


@dataclass(frozen=True, eq=False)
class Keep:
    """What stays as it is: where `mask` (B, 1, h, w) is 0 the latents are `image`, with `noise` of the level at hand.

    Between 0 and 1 both mix after each step. Everything is (B, C, h, w), `image` without noise.
    """

    image: Tensor
    noise: Tensor
    mask: Tensor


def denoise(
    experts: Sequence[Expert], start: Tensor, method: Method, runtime: Runtime, watch: Watch = quiet,
    keep: Keep | None = None,
) -> Tensor:  # fmt: skip
    """Latents at the end of the course, (B, C, h, w) float32, in the course's outer coordinates.

    `start` is clean + sigma * noise at the course's first level. Experts come from the highest noise level down; the
    solver sees one network, so that what it remembers of past steps outlasts the change from one to the next.
    """
    course = method.course
    solver = method.solver if keep is None else _keeping(method.solver, keep, course.end)
    with ExitStack() as held:
        seen = watch_steps(watch, len(course.ladder) - 1)
        try:
            x = sample(solver, _relay(experts, runtime, held), start.float(), course.ladder, method.noise, seen)
        except NonFinite as error:
            raise blamed(error, *(expert.network for expert in experts)) from error
    return x * course.end


def _relay(experts: Sequence[Expert], runtime: Runtime, held: ExitStack) -> Denoise:
    """One denoiser of several; only the expert at work is held."""
    denoisers = [expert.denoiser() for expert in experts]
    untils = [expert.until for expert in experts]
    at_work: list[int] = []

    def estimate(x: Tensor, sigma: Tensor) -> Tensor:
        turn = expert_at(untils, float(sigma))
        if at_work != [turn]:
            held.close()
            held.enter_context(runtime.hold(experts[turn].network))
            at_work[:] = [turn]
        return denoisers[turn](x, sigma)

    return estimate


def expert_at(untils: Sequence[float], sigma: float) -> int:
    """Which expert works at a noise level: the first whose `until` is not above it, the last at all that are left."""
    return next((i for i, until in enumerate(untils[:-1]) if sigma >= until), len(untils) - 1)


def _keeping(solver: Solver, keep: Keep, end: float) -> Solver:
    """The solver with the kept latents put back after each step, and under what the network sees in between."""

    def solve(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
        inside = False  # a step, past its first call, whose latents are the caller's or put back already

        def seen(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal inside
            guess, inside = inside, True
            return denoise(torch.where(keep.mask > 0, x, keep.image + sigma * keep.noise) if guess else x, sigma)

        for step in solver(seen, x, sigmas, noise):
            last = bool(step.sigma == sigmas[-1])
            known = keep.image / end if last else keep.image + step.sigma * keep.noise
            step.x.copy_(torch.lerp(known.float(), step.x, keep.mask.expand_as(step.x)))
            inside = False
            yield step

    return solve
