"""How long and how fast one stage of a training learns. Without torch."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Adam, AdamW or Muon, a rate that warms up, is held and may fall, and an average of the weights."""

    steps: int
    rate: float
    hold: float = 0.4  # share of the steps before the rate falls; 1: it never does
    average: float | None = 0.998  # of the averaged weights, per step; None: none are kept
    warmup: int = 50  # steps
    seed: int = 0
    muon: bool = False  # else Adam for all
    log_every: int = 25  # steps
    score_every: int = 200
    save_every: float = 120.0  # seconds
    accumulate: int = 1  # batches whose gradients make one step
    beta2: float = 0.99
    weight_decay: float | None = None  # AdamW's (Loshchilov and Hutter 2019); None: Adam
    max_norm: float = 1.0  # of the gradients

    def rate_at(self, step: int) -> float:
        """Held, then along half a cosine down to 2 %."""
        warm = self.rate * min(1.0, (step + 1) / max(1, self.warmup))
        if self.hold >= 1:
            return warm
        falling = max(0.0, (step / self.steps - self.hold) / (1 - self.hold))
        return warm * (0.02 + 0.98 * (1 + math.cos(math.pi * falling)) / 2)
