"""Latents that know whose they are, so that those of one family are never decoded or enlarged as another's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from enlarger.errors import InputError
from enlarger.nn.autoencoder import AutoencoderConfig, AutoencoderKL

LatentSpace = Literal["sd", "sdxl", "x4"]  # Stable Diffusion 1 and 2 and the x2 upscaler share the first

SPACE_BY_SCALING_FACTOR: dict[float, LatentSpace] = {0.18215: "sd", 0.13025: "sdxl", 0.08333: "x4"}
COMPATIBLE_MODELS: dict[LatentSpace, str] = {
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
    space: LatentSpace
    sigma: float = 0.0

    def __post_init__(self) -> None:
        if self.values.ndim != 4 or not self.values.is_floating_point():
            found = f"{tuple(self.values.shape)} of {self.values.dtype}"
            raise InputError(f"latents have shape {found}, expected floats (B, C, h, w)")
        if self.space not in COMPATIBLE_MODELS:
            raise InputError(f"latents are of space {self.space!r}, expected one of {', '.join(COMPATIBLE_MODELS)}")
        if not self.sigma >= 0:
            raise InputError(f"latents have noise of level {self.sigma}, expected 0 or above")

    @property
    def scale(self) -> float:
        """What their autoencoder multiplied them by."""
        return next(scale for scale, space in SPACE_BY_SCALING_FACTOR.items() if space == self.space)

    def __repr__(self) -> str:
        return f"Latents({tuple(self.values.shape)}, {self.space!r}, sigma={self.sigma:g})"

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, part: int | slice) -> "Latents":
        """One picture's, or several pictures', in the same four dimensions."""
        rows = self.values[part]
        return replace(self, values=rows if rows.ndim == 4 else rows[None])

    def values_for(self, autoencoder: AutoencoderKL, what: str, allow_noise: bool = False) -> Tensor:
        """The values, for `what`, if it has the same space; InputError, naming who takes them, if not."""
        check_space(self.space, autoencoder.config, what)
        channels = autoencoder.config.latent_channels
        if self.values.shape[1] != channels:
            raise InputError(f"found latents with {self.values.shape[1]} channels for {what}, expected {channels}")
        if self.sigma and not allow_noise:
            raise InputError(
                f"found latents with noise of level {self.sigma:.4g} for {what}, expected finished ones; run their own "
                "checkpoint to the end of its noise levels first"
            )
        return self.values


def join_latents(batch: Sequence[Latents | None]) -> Latents | None:
    """Pictures' latents in one batch; None if some are absent, of other sizes or of other spaces."""
    present = [one for one in batch if one is not None]
    kinds = {(tuple(one.values.shape[1:]), one.space, one.sigma) for one in present}
    if len(present) < len(batch) or len(kinds) != 1:
        return None
    return replace(present[0], values=torch.cat([one.values for one in present]))


def check_space(found: LatentSpace, config: AutoencoderConfig, what: str) -> None:
    """InputError, naming who takes such latents, if they are not of the space that `what` works in."""
    space = latent_space_of(config)
    if found != space:
        raise InputError(
            f"found latents of {found} for {what}, which takes those of {space}; give them to "
            f"{COMPATIBLE_MODELS[found]}, or decode them and give the picture"
        )


def latent_space_of(config: AutoencoderConfig) -> LatentSpace:
    """Whose latents an autoencoder makes; its scale tells."""
    found: LatentSpace | None = next(
        (space for scale, space in SPACE_BY_SCALING_FACTOR.items() if abs(config.scaling_factor - scale) < 1e-6), None
    )
    if found is None:
        known = ", ".join(f"{scale:g} ({space})" for scale, space in SPACE_BY_SCALING_FACTOR.items())
        raise InputError(
            f"the autoencoder's scale is {config.scaling_factor:g}, expected {known}; check its config.json"
        )
    return found
