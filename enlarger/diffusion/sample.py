"""Running a solver over falling noise levels."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.errors import NonFinite


@dataclass(frozen=True, eq=False)
class Step:
    """The latent after a step, the denoised estimate that led there, and the noise level reached.

    Nobody writes into its tensors: the solver still uses them. To change the latents, see `sample`.
    """

    x: Tensor
    denoised: Tensor
    sigma: Tensor


Steps = Generator[Step, Tensor, None]  # yields a step and goes on from the latents that it is sent


class Solver(Protocol):
    """A generator of the steps down the noise levels; its state is its local variables."""

    def __call__(self, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Steps: ...


OnStep = Callable[[Step], Tensor]  # from a step to the latents to go on from


def unchanged(step: Step) -> Tensor:
    """Go on from the step as it is."""
    return step.x


def sample(
    solver: Solver, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep = unchanged
) -> Tensor:
    """The latents at the last of `sigmas`, like `x`.

    `on_step` sees every step and gives the latents to go on from, or raises Cancelled: the one way to change latents in
    the midst of a run. Raises NonFinite when the result is not a number, so that no black picture is made of it.
    """
    with torch.inference_mode():
        steps = solver(denoise, x, sigmas, noise)
        step = next(steps, None)
        while step is not None:
            x = on_step(step)
            try:
                step = steps.send(x)
            except StopIteration:
                step = None
    if not torch.isfinite(x).all():
        raise NonFinite(f"the latent is not finite after sampling ({x.dtype}); run in float32 or bfloat16")
    return x


def walk(solver: Solver, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """The steps of a solver one after another, for whoever wants to look at them; none is changed."""
    steps = solver(denoise, x, sigmas, noise)
    step = next(steps, None)
    while step is not None:
        yield step
        try:
            step = steps.send(step.x)
        except StopIteration:
            step = None
