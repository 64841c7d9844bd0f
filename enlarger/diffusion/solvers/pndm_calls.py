"""PNDM as diffusers walks it: a call of the network at each entry of a list, each from one level to another.

Where the entries are unevenly spaced, or a run starts inside the list, a step does not begin at the level that the last
one reached: the latents, at unit variance, are then taken for those of another level.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Step, Steps
from enlarger.diffusion.solvers.multistep import adams_bashforth


@dataclass(frozen=True, eq=False)
class Span:
    """The level of a call, and from where to where its step goes."""

    called: Tensor
    start: Tensor
    lower: Tensor


def pndm_by_calls(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, spans: Sequence[Span], runge_kutta: int = 0,
    of_velocity: bool = False,
) -> Steps:  # fmt: skip
    """Liu et al. 2022: `runge_kutta` calls, four for each step, then Adams-Bashforth; without them the first step of
    the latter is corrected once. `of_velocity` mixes velocities in place of noise estimates. Each call is yielded."""
    outputs: list[Tensor] = []  # newest first
    base, level, total = x, spans[0].called, torch.zeros_like(x)
    for i, span in enumerate(spans):
        denoised = denoise(x, span.called)
        output = _output(x, denoised, span.called, of_velocity)
        place = i % 4 if i < runge_kutta else 0
        corrects = i == 1 and not runge_kutta
        if place == 0 and not corrects:
            base, level = x, span.called
            outputs = [output, *outputs[:3]]
        if i < runge_kutta:
            total, output = _runge_kutta(total, output, place)
        else:
            output = (output + outputs[0]) / 2 if corrects else adams_bashforth(outputs)
        begin = base * ((span.start**2 + 1) / (level**2 + 1)).sqrt()
        x = begin + _slope(begin, output, span.start, of_velocity) * (span.lower - span.start)
        x = yield Step(x, denoised, span.lower)


def _runge_kutta(total: Tensor, output: Tensor, place: int) -> tuple[Tensor, Tensor]:
    """The weighted sum of a step's outputs so far, and the output that this call's latents come from."""
    total = (total if place else 0) + output / (6 if place in (0, 3) else 3)
    return total, total if place == 3 else output


def _output(x: Tensor, denoised: Tensor, sigma: Tensor, of_velocity: bool) -> Tensor:
    slope = (x - denoised) / sigma
    return (slope - sigma * denoised) / (sigma**2 + 1).sqrt() if of_velocity else slope


def _slope(x: Tensor, output: Tensor, sigma: Tensor, of_velocity: bool) -> Tensor:
    """The noise estimate that a velocity means for these latents."""
    return output / (sigma**2 + 1).sqrt() + sigma / (sigma**2 + 1) * x if of_velocity else output
