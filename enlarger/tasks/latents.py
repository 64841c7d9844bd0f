"""Latents that know whose they are, so that those of one family are never decoded or enlarged as another's."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from enlarger.errors import InputError
from enlarger.nn.autoencoder import AutoencoderConfig, AutoencoderKL

Space = Literal["sd", "sdxl", "x4"]  # Stable Diffusion 1 and 2 and the x2 upscaler share the first

SCALES: dict[float, Space] = {0.18215: "sd", 0.13025: "sdxl", 0.08333: "x4"}
TAKERS: dict[Space, str] = {
    "sd": "a Stable Diffusion 1 or 2 checkpoint or the x2 latent upscaler",
    "sdxl": "an SDXL checkpoint, base or refiner",
    "x4": "the x4 upscaler's autoencoder",
}


@dataclass(frozen=True, eq=False)
class Latents:
    """Latents (B, C, h, w) in float32, scaled as their autoencoder scales them.

    `space` names that autoencoder. `sigma` is the noise level left in them: they are clean + sigma * noise.
    """

    values: Tensor
    space: Space
    sigma: float = 0.0

    def __post_init__(self) -> None:
        if self.values.ndim != 4:
            raise InputError(f"latents have shape {tuple(self.values.shape)}, expected (B, C, h, w)")
        if self.space not in TAKERS:
            raise InputError(f"latents are of space {self.space!r}, expected one of {', '.join(TAKERS)}")

    def values_for(self, autoencoder: AutoencoderKL, what: str, noisy: bool = False) -> Tensor:
        """The values, for `what`, if it has the same space; InputError, naming who takes them, if not."""
        space = space_of(autoencoder.config)
        if self.space != space:
            raise InputError(
                f"found latents of {self.space} for {what}, which takes those of {space}; give them to "
                f"{TAKERS[self.space]}, or decode them and give the picture"
            )
        if self.sigma and not noisy:
            raise InputError(f"found latents with noise of level {self.sigma:.4g} for {what}, expected finished ones")
        return self.values


def space_of(config: AutoencoderConfig) -> Space:
    """Whose latents an autoencoder makes; its scale tells."""
    found = next((space for scale, space in SCALES.items() if abs(config.scale - scale) < 1e-6), None)
    if found is None:
        known = ", ".join(f"{scale:g} ({space})" for scale, space in SCALES.items())
        raise InputError(f"the autoencoder's scale is {config.scale:g}, expected {known}; check its config.json")
    return found
