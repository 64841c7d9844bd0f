"""Classifier-free guidance: how the outputs of two branches become one."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """Ho and Salimans 2022: unconditional + scale * (conditional - unconditional), on the raw outputs.

    Any real scale: 0 is the unconditional branch, 1 the conditional one alone. `rescale` restores that share of the
    conditional branch's contrast (Lin et al. 2023, section 3.4); outside `interval` (noise levels, both ends included)
    the conditional branch runs alone (Kynkaanniemi et al. 2024).
    """

    scale: float = 1.0
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, math.inf)
    is_live: ClassVar[bool] = False  # the scale is another's, and may change during a run

    def is_active(self, sigma: float) -> bool:
        """Whether both branches are needed at a noise level."""
        return self.scale != 1 and self.interval[0] <= sigma <= self.interval[1]

    @property
    def is_unconditional(self) -> bool:
        """Whether the conditional branch never matters."""
        return self.scale == 0 and self.rescale == 0 and self.interval == (0.0, math.inf) and not self.is_live

    def combine(self, output: Tensor) -> Tensor:
        """Raw outputs (2B, ...), unconditional first, to (B, ...)."""
        unconditional, conditional = output.chunk(2)
        guided = unconditional + self.scale * (conditional - unconditional)
        if self.rescale == 0:
            return guided
        axes = tuple(range(1, guided.ndim))
        rescaled = guided * (conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True))
        return self.rescale * rescaled + (1 - self.rescale) * guided
