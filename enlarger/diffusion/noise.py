"""Where randomness comes from: an argument, one generator per image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Noise(Protocol):
    """Standard normal numbers shaped and placed like the given batch."""

    def __call__(self, like: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class PerSampleGenerators:
    """One generator per image, so that a picture does not depend on its neighbours in the batch.

    `dtype` is the precision that is drawn and given; None: the batch's.
    """

    generators: tuple[torch.Generator, ...]
    dtype: torch.dtype | None = None

    def __call__(self, like: Tensor) -> Tensor:
        assert len(like) == len(self.generators), f"{len(like)} images for {len(self.generators)} generators"
        return torch.cat([_draw(like[i : i + 1], g, self.dtype) for i, g in enumerate(self.generators)])


@dataclass(frozen=True, eq=False)
class SharedGenerator:
    """One generator (None: torch's own on the batch's device) for a whole batch, as diffusers draws."""

    generator: torch.Generator | None

    def __call__(self, like: Tensor) -> Tensor:
        return _draw(like, self.generator)


def from_seeds(seeds: Sequence[int]) -> PerSampleGenerators:
    """A CPU generator per seed: the same numbers whatever device and precision the model runs on."""
    return PerSampleGenerators(tuple(torch.Generator().manual_seed(seed) for seed in seeds), torch.float32)


def _draw(like: Tensor, generator: torch.Generator | None, dtype: torch.dtype | None = None) -> Tensor:
    device, dtype = like.device if generator is None else generator.device, like.dtype if dtype is None else dtype
    return torch.randn(like.shape, generator=generator, device=device, dtype=dtype).to(like.device)


def generators_of(noise: Noise) -> tuple[torch.Generator, ...]:
    """The generators that it draws from; what it draws again, it draws from their states."""
    if isinstance(noise, PerSampleGenerators):
        return noise.generators
    return (noise.generator,) if isinstance(noise, SharedGenerator) and noise.generator is not None else ()
