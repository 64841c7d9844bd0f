"""A solver driven call by call is the solver."""

import pytest
import torch
from torch import Tensor

from enlarger.diffusion.sample import walk
from enlarger.diffusion.solvers import SOLVERS
from enlarger.diffusion.stepper import Stepper
from tests.support.close import assert_close

SIGMAS = torch.tensor([14.6, 7.0, 3.0, 1.5, 0.7, 0.2, 0.0], dtype=torch.float64)
DRIVEN = [name for name in SOLVERS if name not in ("dpm_adaptive", "dpm_fast")]


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    return torch.tanh(x / (1 + sigma**2).sqrt())


@pytest.mark.parametrize("name", DRIVEN)
def test_call_by_call_is_the_whole_run(name: str) -> None:
    x = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0)) * SIGMAS[0]
    draws = [torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(k)) for k in range(20)]
    expected_draws, found_draws = iter(draws), iter(draws)
    steps = list(walk(SOLVERS[name], denoise, x, SIGMAS, lambda like: next(expected_draws)))
    stepper, found = Stepper(SOLVERS[name], SIGMAS), []
    latents, sigma = x, SIGMAS[0]
    while sigma > 0:
        done = stepper.advance(latents, denoise, lambda like: next(found_draws))
        latents, sigma = done.x, done.sigma
        found += [] if done.inside else [latents]
    assert len(found) == len(steps)
    for one, step in zip(found, steps, strict=True):
        assert_close(one, step.x, 1e-5)
