"""What a solver sees of a network."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from enlarger.diffusion.conditioning import Conditioning
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.overflow import FiniteCheck, first_overflow
from enlarger.diffusion.precondition import Precondition
from enlarger.diffusion.prepared import PreparedNetwork, plain
from enlarger.errors import NonFinite


class Denoise(Protocol):
    """A noisy latent (B, C, H, W) in float32 and its scalar noise level in, a denoised estimate out."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Denoiser:
    """The only caller of a diffusion network and the only place where precision changes."""

    network: Callable[..., Tensor]
    dtype: torch.dtype  # the network's
    precondition: Precondition
    conditioning: Conditioning
    guided_conditioning: Conditioning | None = None  # the unconditional branch stacked on the conditional one
    guidance: Guidance = Guidance()
    before_call: Callable[[Tensor, Tensor], Tensor] | None = None  # changes the noisy latent, given its noise level
    finite_check: FiniteCheck = field(default_factory=FiniteCheck)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        x = x if self.before_call is None else self.before_call(x, sigma)
        scalings = self.precondition(sigma)
        is_guided = self.guided_conditioning is not None and self.guidance.is_active(float(sigma))
        conditioning = (
            self.guided_conditioning if is_guided and self.guided_conditioning is not None else self.conditioning
        )
        scaled_input = (x * scalings.input).to(self.dtype)
        network_input = conditioning.join(torch.cat([scaled_input, scaled_input]) if is_guided else scaled_input)
        timestep = torch.full((len(network_input),), float(scalings.time), device=x.device)
        inputs = conditioning.cast(x.device, self.dtype).inputs
        network = plain(self.network)
        told = self.network.told(inputs) if isinstance(self.network, PreparedNetwork) else inputs
        output = network(network_input, timestep, **told)
        if self.dtype != torch.float32:

            def describe() -> NonFinite:
                name = first_overflow(network, lambda: network(network_input, timestep, **inputs))
                return NonFinite(_describe(name, self.dtype), sigma=float(sigma))

            self.finite_check.see(output, describe)
        output = output[:, : x.shape[1]].float()  # a channel more is a variance that samplers do not use
        return x * scalings.skip + (self.guidance.combine(output) if is_guided else output) * scalings.output


def _describe(module: str | None, dtype: torch.dtype) -> str:
    where = "its output" if module is None else f"the output of {module}"
    return f"{where} in the diffusion network is not finite in {str(dtype).removeprefix('torch.')}"
