"""A latent denoised in overlapping windows, blended at every call (MultiDiffusion, Bar-Tal et al. 2023)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from enlarger.diffusion.conditioning import Conditioning
from enlarger.diffusion.denoiser import Denoiser


def _nobody() -> None:
    """Nobody counts."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Squares of `side` latents, neighbours sharing `overlap` or more; both are multiples of `multiple`.

    `on_window` is called after each window of each call of the network; it may raise to stop.
    """

    side: int
    overlap: int
    multiple: int = 8
    on_window: Callable[[], None] = _nobody

    def starts(self, length: int) -> list[int]:
        """Where windows begin along a side, evenly, at multiples; the last ends with the side."""
        if length <= self.side:
            return [0]
        count = -(-(length - self.overlap) // (self.side - self.overlap))
        last = length - self.side
        return [i * last // (count - 1) // self.multiple * self.multiple for i in range(count - 1)] + [last]

    def count(self, size: tuple[int, int]) -> int:
        """How many windows cover latents of `size` (height, width)."""
        return len(self.starts(size[0])) * len(self.starts(size[1]))

    def cover(self, size: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
        """The rows and columns of each window."""
        for top, left in product(*(self.starts(side) for side in size)):
            yield slice(top, min(size[0], top + self.side)), slice(left, min(size[1], left + self.side))

    def weights(self, height: int, width: int, device: torch.device | None = None) -> Tensor:
        """How much a window counts at each of its places, (height, width): less and less towards its edges."""
        rows, columns = (self._ramp(length, device) for length in (height, width))
        return rows[:, None] * columns

    def _ramp(self, length: int, device: torch.device | None) -> Tensor:
        distance = torch.arange(length, device=device) + 0.5
        return (torch.minimum(distance, length - distance) / max(1, self.overlap)).clamp(max=1)


@dataclass(frozen=True, eq=False)
class WindowedDenoiser:
    """A `Denoise` that calls a denoiser window by window, each with its part of what is concatenated.

    The solver and its noise see the whole latent, so that a window's noise is the whole's, cut. Where one window covers
    everything, this is the denoiser itself.
    """

    denoiser: Denoiser
    windows: Windows

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        height, width = x.shape[2:]
        total, weight = torch.zeros_like(x), x.new_zeros(height, width)
        if self.windows.count((height, width)) == 1:
            denoised = self.denoiser(x, sigma)
            self.windows.on_window()
            return denoised
        x = x if self.denoiser.before_call is None else self.denoiser.before_call(x, sigma)
        for rows, columns in self.windows.cover((height, width)):
            window = x[..., rows, columns]
            share = self.windows.weights(*window.shape[2:], device=x.device)
            total[..., rows, columns] += share * self._cut(rows, columns)(window, sigma)
            weight[rows, columns] += share
            self.windows.on_window()
        return total / weight

    def _cut(self, rows: slice, columns: slice) -> Denoiser:
        guided = self.denoiser.guided_conditioning
        return replace(
            self.denoiser,
            conditioning=_cut(self.denoiser.conditioning, rows, columns),
            guided_conditioning=None if guided is None else _cut(guided, rows, columns),
            before_call=None,
        )


def _cut(conditioning: Conditioning, rows: slice, columns: slice) -> Conditioning:
    if conditioning.concat is None:
        return conditioning
    return replace(conditioning, concat=conditioning.concat[..., rows, columns])
