"""Solvers as diffusers runs them when a run starts or stops inside the list of its calls.

There the latents are taken for those of another level than they have. Our own runs are never cut like that: they start
and stop at whole steps (`Course.part`), and several networks share one run (`tasks.denoise`).
"""

from itertools import pairwise

from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Step, Steps
from enlarger.diffusion.solvers import adams_bashforth, heun


def heun_with_euler_end(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Steps:
    """Heun, stopped between the halves of its last step: that one is Euler's."""
    return heun(denoise, x, sigmas, noise, lower_order_final=True)


def plms_resumed_at_third(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Steps:
    """PNDM from the third entry of its list or a later one: after the first, corrected step the latents are taken for
    those of the level below the one they reached."""
    denoised = denoise(x, sigmas[0])
    slope = (x - denoised) / sigmas[0]
    guess = x + slope * (sigmas[1] - sigmas[0])
    denoised = denoise(guess, sigmas[1])
    mean_slope = (slope + (guess - denoised) / sigmas[1]) / 2
    x_next = x + mean_slope * (sigmas[1] - sigmas[0])
    start = _reinterpret_at(x_next, sigmas[1], sigmas[2])
    start = yield Step(start, denoised, sigmas[2])
    yield from _plms_steps(denoise, start, sigmas[2:], slope)


def plms_resumed_at_second(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, previous_sigma: Tensor
) -> Steps:  # fmt: skip
    """PNDM from the second entry of its list: the first step is corrected as if it had begun at the level `before`."""
    denoised = denoise(x, sigmas[0])
    slope = (x - denoised) / sigmas[0]
    guess = _reinterpret_at(x + slope * (sigmas[1] - sigmas[0]), sigmas[1], sigmas[0])
    denoised = denoise(guess, sigmas[0])
    mean_slope = (slope + (guess - denoised) / sigmas[0]) / 2
    x_next = _reinterpret_at(x, sigmas[0], previous_sigma) + mean_slope * (sigmas[0] - previous_sigma)
    start = _reinterpret_at(x_next, sigmas[0], sigmas[1])
    start = yield Step(start, denoised, sigmas[1])
    yield from _plms_steps(denoise, start, sigmas[1:], slope)


def _plms_steps(denoise: Denoise, x: Tensor, sigmas: Tensor, slope: Tensor) -> Steps:
    """PLMS with one slope behind it."""
    slopes = [slope]
    for sigma, lower in pairwise(sigmas):
        denoised = denoise(x, sigma)
        slopes = [(x - denoised) / sigma, *slopes[:3]]
        x = x + adams_bashforth(slopes) * (lower - sigma)
        x = yield Step(x, denoised, lower)


def _reinterpret_at(x: Tensor, sigma: Tensor, other: Tensor) -> Tensor:
    """Latents of unit variance at one level, unchanged, read as those of another."""
    return x * ((other**2 + 1) / (sigma**2 + 1)).sqrt()
