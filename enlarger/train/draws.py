"""The chance of training: a generator for each sample, so that a sample meets the same in any batch and any process."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from enlarger.diffusion.noise import PerSampleGenerators


@dataclass(frozen=True, eq=False)
class Draws:
    """What is drawn for a batch; generators live on the CPU, so that no device changes a number."""

    generators: tuple[torch.Generator, ...]

    def normal(self, like: Tensor) -> Tensor:
        """Unit noise (B, ...) shaped, typed and placed like a batch."""
        return PerSampleGenerators(self.generators)(like)

    def uniform(self) -> Tensor:
        """Numbers from 0 up to 1, (B,) in float32."""
        return torch.cat([torch.rand(1, generator=generator) for generator in self.generators])

    def whole(self, end: int) -> Tensor:
        """Whole numbers from 0 up to `end`, that left out, (B,) int64."""
        return torch.cat([torch.randint(0, end, (1,), generator=generator) for generator in self.generators])


def draws_of_step(seed: int, step: int, rows: Iterable[int]) -> Draws:
    """Those of some rows of a step's batch; they follow from seed, step and row alone."""
    return Draws(tuple(torch.Generator().manual_seed(seed_of(seed, step, row)) for row in rows))


def seed_of(*numbers: int) -> int:
    """A seed that follows from numbers of any size."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
