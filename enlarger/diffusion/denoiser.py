"""What a solver sees of a network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from enlarger.diffusion.conditioning import Conditioning
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.precondition import Precondition


class Denoise(Protocol):
    """A noisy latent (B, C, H, W) in float32 and its scalar noise level in, a clean estimate out."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Denoiser:
    """The only caller of a diffusion network and the only place where precision changes."""

    network: Callable[..., Tensor]
    dtype: torch.dtype  # the network's
    precondition: Precondition
    conditioning: Conditioning
    guided: Conditioning | None = None  # the unconditional branch stacked on the conditional one
    guidance: Guidance = Guidance()

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        scale = self.precondition(sigma)
        both = self.guided is not None and self.guidance.active(float(sigma))
        conditioning = self.guided if both and self.guided is not None else self.conditioning
        scaled = x * scale.input
        joined = conditioning.join(torch.cat([scaled, scaled]) if both else scaled).to(self.dtype)
        time = scale.time.float().to(x.device).expand(len(joined))
        output = self.network(joined, time, **conditioning.cast(x.device, self.dtype).inputs)
        output = output[:, : x.shape[1]].float()  # a channel more is a variance that samplers do not use
        return x * scale.skip + (self.guidance.merge(output) if both else output) * scale.output
