"""Noise that is the same path of Brownian motion whatever the steps are, as k-diffusion and diffusers draw it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from enlarger.diffusion.noise import Noise
from enlarger.errors import Unsupported


class BrownianNoise:
    """Increments of Brownian motion over the noise level, from torchsde's tree; a list of seeds is one per image."""

    def __init__(self, like: Tensor, least: float, most: float, seed: int | Sequence[int] | None = None) -> None:
        try:
            import torchsde  # pyright: ignore[reportMissingImports, reportMissingTypeStubs] - optional
        except ImportError as error:
            raise Unsupported("noise of a Brownian tree needs torchsde; `pip install torchsde`") from error
        drawn = int(torch.randint(0, 2**63 - 1, []).item()) if seed is None else seed
        self._batched = not isinstance(drawn, int)
        shape = like[0].shape if self._batched else like.shape
        self._trees: list[Any] = [
            torchsde.BrownianInterval(  # pyright: ignore[reportUnknownMemberType] - no stubs
                t0=torch.as_tensor(least), t1=torch.as_tensor(most), size=shape, dtype=like.dtype, device=like.device,
                entropy=one, tol=1e-6, pool_size=24, halfway_tree=True,
            )
            for one in ([drawn] if isinstance(drawn, int) else drawn)
        ]  # fmt: skip

    def between(self, sigma: Tensor, lower: Tensor) -> Tensor:
        """Standard normal numbers for the way between two levels."""
        increments: list[Tensor] = [-tree(lower, sigma) for tree in self._trees]
        drawn = torch.stack(increments) if self._batched else increments[0]
        return drawn / (sigma - lower).abs().sqrt()

    def for_step(self, sigma: float, lower: float, scale: float = 1.0) -> Noise:
        """The draws of one `dpmpp_sde` step: to the level halfway over log(sigma), then over the whole step.

        Levels go through their logarithms in float32, as in diffusers: a tree knows the last digit.
        """
        begin, end = (-torch.tensor(level).log() for level in (sigma, lower))
        draws = iter([begin + (end - begin) * 0.5, end])

        def draw(like: Tensor) -> Tensor:
            return scale * self.between((-begin).exp(), (-next(draws)).exp())

        return draw
