"""Solvers as diffusers runs them when a run starts or stops inside the list of its calls.

There the latents are taken for those of another level than they have. Our own runs are never cut like that: they start
and stop at whole steps (`Course.part`), and several networks share one run (`tasks.denoise`).
"""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Step
from enlarger.diffusion.solvers import adams_bashforth, euler, heun


def heun_to_a_guess(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """Heun, stopped between the halves of its last step: that one is Euler's."""
    for step in heun(denoise, x, sigmas[:-1], noise) if len(sigmas) > 2 else ():
        x = step.x
        yield step
    yield from euler(denoise, x, sigmas[-2:], noise)


def plms_resumed(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """PNDM from the third entry of its list or a later one: after the first, corrected step the latents are taken for
    those of the level below the one they reached."""
    clean = denoise(x, sigmas[0])
    slope = (x - clean) / sigmas[0]
    guess = x + slope * (sigmas[1] - sigmas[0])
    clean = denoise(guess, sigmas[1])
    both = (slope + (guess - clean) / sigmas[1]) / 2
    reached = x + both * (sigmas[1] - sigmas[0])
    start = _taken_for(reached, sigmas[1], sigmas[2])
    yield Step(start, clean, sigmas[2])
    yield from _multistep(denoise, start, sigmas[2:], slope)


def plms_resumed_second(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, before: Tensor
) -> Iterator[Step]:  # fmt: skip
    """PNDM from the second entry of its list: the first step is corrected as if it had begun at the level `before`."""
    clean = denoise(x, sigmas[0])
    slope = (x - clean) / sigmas[0]
    guess = _taken_for(x + slope * (sigmas[1] - sigmas[0]), sigmas[1], sigmas[0])
    clean = denoise(guess, sigmas[0])
    both = (slope + (guess - clean) / sigmas[0]) / 2
    reached = _taken_for(x, sigmas[0], before) + both * (sigmas[0] - before)
    start = _taken_for(reached, sigmas[0], sigmas[1])
    yield Step(start, clean, sigmas[1])
    yield from _multistep(denoise, start, sigmas[1:], slope)


def _multistep(denoise: Denoise, x: Tensor, sigmas: Tensor, slope: Tensor) -> Iterator[Step]:
    """PLMS with one slope behind it."""
    slopes = [slope]
    for sigma, lower in pairwise(sigmas):
        clean = denoise(x, sigma)
        slopes = [(x - clean) / sigma, *slopes[:3]]
        x = x + adams_bashforth(slopes) * (lower - sigma)
        yield Step(x, clean, lower)


def _taken_for(x: Tensor, sigma: Tensor, other: Tensor) -> Tensor:
    """Latents of unit variance at one level, unchanged, read as those of another."""
    return x * ((other**2 + 1) / (sigma**2 + 1)).sqrt()
