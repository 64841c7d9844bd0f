"""What the autoencoders share: the distribution of latents, slicing and tiling."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Latents:
    """The normal distribution of a picture's latents, not scaled."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean, std

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        place = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=place, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)

    def mode(self) -> Tensor:
        return self.mean

    @property
    def var(self) -> Tensor:
        return self.std**2

    @property
    def logvar(self) -> Tensor:
        return self.var.log()

    def kl(self) -> Tensor:
        """The divergence from the standard normal distribution, (B,)."""
        return 0.5 * (self.mean**2 + self.var - 1 - self.logvar).sum((1, 2, 3))


class SlicedMethods:
    """Slicing and tiling, for the autoencoders to inherit."""

    use_slicing = False
    use_tiling = False

    def _batches(self, x: Tensor) -> list[Tensor]:
        return list(torch.split(x, 1)) if self.use_slicing else [x]

    def enable_slicing(self) -> None:
        """Encode and decode one picture of a batch at a time."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Encode and decode a batch at once."""
        self.use_slicing = False

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Encode and decode pictures of every size in tiles, not only large ones: exactly, unlike diffusers' tiles."""
        self.use_tiling = use_tiling

    def disable_tiling(self) -> None:
        """Undo `enable_tiling`."""
        self.use_tiling = False

    def _in_tiles(self, call: Callable[..., Any], x: Tensor, return_dict: bool) -> Any:
        before = self.use_tiling
        try:
            self.use_tiling = True
            return call(x, return_dict)
        finally:
            self.use_tiling = before
