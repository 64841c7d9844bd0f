"""The two networks that every task uses, with what all of them do: encode, draw, denoise, decode."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from enlarger.diffusion.noise import Noise
from enlarger.diffusion.precondition import Precondition
from enlarger.diffusion.sample import OnStep, unchanged
from enlarger.errors import InputError
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.unet import UNetConfig
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.result import decode_latents, in_float32
from enlarger.tasks.sampling import Expert, GuidedConditioning, KnownRegion, SamplingPlan, sample_latents


@dataclass(frozen=True, eq=False)
class LatentDiffusion:
    """A diffusion network and its autoencoder. `upcast` runs the autoencoder in float32, as SDXL's and x4's need."""

    unet: nn.Module
    vae: AutoencoderKL
    precondition: Precondition
    runtime: Runtime = Runtime()
    upcast_vae: bool = False

    @property
    def unet_config(self) -> UNetConfig:
        """The diffusion network's widths."""
        config: Any = self.unet.config
        return config

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the diffusion network, in which noise is drawn."""
        return next(self.unet.parameters()).dtype

    def latent_shape(self, count: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Of `count` latents of `size` (h, w)."""
        return (count, self.vae.config.latent_channels, *size)

    def draw_noise(self, shape: tuple[int, ...], noise: Noise, initial_noise: Tensor | None = None) -> Tensor:
        """Unit noise in float32, drawn in the network's precision; `given` replaces the draw."""
        if initial_noise is not None:
            return initial_noise.to(self.runtime.device).float()
        return noise(torch.empty(shape, dtype=self.dtype, device=self.runtime.device)).float()

    def encode(self, image: Tensor, noise: Noise) -> Tensor:
        """Pictures (B, 3, H, W) in -1..1 to sampled latents in float32; latents as they are."""
        if image.shape[1] == self.vae.config.latent_channels:
            return image.to(self.runtime.device).float()
        if image.shape[1] != 3:
            raise InputError(f"found {image.shape[1]} channels, expected 3 of a picture or 4 of latents")
        with self.runtime.hold(self.vae), torch.inference_mode(), in_float32(self.vae, self.upcast_vae) as dtype:
            posterior = self.vae.encode(image.to(self.runtime.device, dtype))
            like = posterior.mean.to(self.dtype)  # what a draw is shaped and typed like
            return posterior.sample(noise(like).to(posterior.mean)).float()

    def sample(
        self,
        conditioning: GuidedConditioning,
        initial_latents: Tensor,
        plan: SamplingPlan,
        on_step: OnStep = unchanged,
        known_region: KnownRegion | None = None,
    ) -> Tensor:
        """Latents at the end of the course, see `tasks.denoise`."""
        expert = Expert(self.unet, self.precondition, conditioning)
        return sample_latents([expert], initial_latents, plan, self.runtime, on_step, known_region)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pictures about -1..1 in float32, see `parts.decode`."""
        return decode_latents(self.vae, latents, self.runtime, self.upcast_vae)


def repeat_each(x: Tensor, count: int) -> Tensor:
    """`count` rows of a batch that divides them: a, b become a, a, b, b."""
    if count % len(x):
        raise InputError(f"{len(x)} pictures for {count} results; give one, or one per prompt")
    return x.repeat_interleave(count // len(x), 0)
