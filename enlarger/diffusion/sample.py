"""Running a solver down its ladder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from enlarger.diffusion.denoiser import Denoise
from enlarger.diffusion.noise import Noise
from enlarger.errors import NonFinite


@dataclass(frozen=True, eq=False)
class Step:
    """The latent after a step, the clean estimate that led there, and the noise level reached."""

    x: Tensor
    denoised: Tensor
    sigma: Tensor


class Solver(Protocol):
    """A generator of the steps down a ladder; its state is its local variables."""

    def __call__(self, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]: ...


StepCallback = Callable[[Step], None]


def no_callback(step: Step) -> None:
    """Watch nothing."""


def sample(
    solver: Solver, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, callback: StepCallback = no_callback
) -> Tensor:
    """Run a solver down its ladder. `watch` sees every step and may raise Cancelled.

    Raises NonFinite when the result is not a number, so that no black picture is made of it.
    """
    with torch.inference_mode():
        for step in solver(denoise, x, sigmas, noise):
            x = step.x
            callback(step)
    if not torch.isfinite(x).all():
        raise NonFinite(f"the latent is not finite after sampling ({x.dtype}); run in float32 or bfloat16")
    return x
