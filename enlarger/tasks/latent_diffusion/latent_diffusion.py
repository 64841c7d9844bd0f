"""The two networks that every task uses, with what all of them do: encode, draw, decode."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enlarger.diffusion.noise import Noise
from enlarger.diffusion.precondition import Precondition
from enlarger.errors import InputError, NonFinite
from enlarger.nn.autoencoder import AutoencoderKL, Posterior
from enlarger.nn.unet import UNetConfig
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.latent_diffusion.conditioning import GuidedConditioning
from enlarger.tasks.latent_diffusion.float32_retry import in_float32, is_finite, warn_of_overflow
from enlarger.tasks.latent_diffusion.sampling import Expert, with_bad_weight
from enlarger.tasks.latent_diffusion.tiled_autoencoder import decode_image, encode_image


@dataclass(frozen=True, eq=False)
class LatentDiffusion:
    """A diffusion network and its autoencoder.

    `upcast_vae` runs the autoencoder in float32, as SDXL's and x4's need; `tile_vae` in tiles, small pictures too.
    """

    unet: nn.Module
    vae: AutoencoderKL
    precondition: Precondition
    runtime: Runtime = Runtime()
    upcast_vae: bool = False
    tile_vae: bool = False

    @property
    def unet_config(self) -> UNetConfig:
        """The diffusion network's widths."""
        config: Any = self.unet.config
        return config

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the diffusion network, in which noise is drawn."""
        return next(self.unet.parameters()).dtype

    def latent_shape(self, count: int, latent_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Of `count` latents of `latent_size` (h, w)."""
        return (count, self.vae.config.latent_channels, *latent_size)

    def draw_noise(self, shape: tuple[int, ...], noise: Noise, initial_noise: Tensor | None = None) -> Tensor:
        """Unit noise in float32, drawn in the network's precision; `initial_noise` replaces the draw."""
        if initial_noise is not None:
            return initial_noise.to(self.runtime.device).float()
        return noise(torch.empty(shape, dtype=self.dtype, device=self.runtime.device)).float()

    def encode(self, image: Tensor, noise: Noise) -> Tensor:
        """Pictures (B, 3, H, W) in -1..1 to sampled latents in float32; latents as they are."""
        if image.shape[1] == self.vae.config.latent_channels:
            return image.to(self.runtime.device).float()
        if image.shape[1] != 3:
            raise InputError(f"found {image.shape[1]} channels, expected 3 of a picture or 4 of latents")
        return self.sample_posterior(self.posterior(image), noise)

    def posterior(self, image: Tensor) -> Posterior:
        """The distribution of the latents of pictures (B, 3, H, W) in -1..1, in the autoencoder's precision."""
        with self.runtime.hold(self.vae), torch.inference_mode(), in_float32(self.vae, self.upcast_vae) as dtype:
            pixels = image.to(self.runtime.device, dtype)
            work = self.runtime.work
            with self.runtime.engine.prepare(self.vae.encoder) as encoder:
                posterior = encode_image(self.vae, pixels, tiled=self.tile_vae, encoder=encoder, work=work)
            if dtype != torch.float32 and not is_finite(posterior.mean, posterior.std):
                warn_of_overflow(
                    self.vae, dtype, "encoded", lambda: encode_image(self.vae, pixels, tiled=self.tile_vae)
                )
                with in_float32(self.vae):
                    posterior = encode_image(self.vae, pixels.float(), tiled=self.tile_vae, work=self.runtime.work)
            return posterior

    def sample_posterior(self, posterior: Posterior, noise: Noise) -> Tensor:
        """Latents of a distribution in float32; where it is exact, nothing is drawn."""
        if posterior.is_exact:
            return posterior.mean.float()
        with torch.inference_mode():
            like = posterior.mean.to(self.dtype)  # what a draw is shaped and typed like
            return posterior.sample(noise(like).to(posterior.mean)).float()

    def expert(self, conditioning: GuidedConditioning, handoff_sigma: float = 0.0) -> Expert:
        """The diffusion network, conditioned, as one that samples."""
        return Expert(self.unet, self.precondition, conditioning, handoff_sigma)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pictures about -1..1 in float32, see `decode_latents`."""
        return decode_latents(self.vae, latents, self.runtime, self.upcast_vae, tiled=self.tile_vae)


def expand_to_batch(x: Tensor, batch_size: int) -> Tensor:
    """`batch_size` rows, which the rows of `x` must divide: a, b become a, a, b, b."""
    if batch_size % len(x):
        raise InputError(f"{len(x)} pictures for {batch_size} results; give one, or one per prompt")
    return x.repeat_interleave(batch_size // len(x), 0)


def pad_to_multiple(x: Tensor, multiple: int, min_size: int = 1) -> Tensor:
    """The last row and column repeated until both sizes are multiples of `multiple`, and at least `min_size`."""
    bottom, right = (max(-(-side // multiple) * multiple, min_size) - side for side in x.shape[-2:])
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if right or bottom else x


def decode_latents(
    autoencoder: AutoencoderKL, latents: Tensor, runtime: Runtime, upcast: bool = False, *, tiled: bool = False
) -> Tensor:
    """Latents to pictures about -1..1 in float32. A half-precision overflow is decoded again in float32.

    `upcast` decodes in float32 at once, `tiled` in tiles whatever the size. Raises NonFinite if that is not finite
    either.
    """
    with runtime.hold(autoencoder), torch.inference_mode():
        with in_float32(autoencoder, upcast) as dtype:
            x = latents.to(runtime.device, dtype)
            with runtime.engine.prepare(autoencoder.decoder) as decoder:
                picture = decode_image(autoencoder, x, tiled=tiled, decoder=decoder, work=runtime.work).float()
        if dtype != torch.float32 and not is_finite(picture):
            warn_of_overflow(autoencoder, dtype, "decoded", lambda: decode_image(autoencoder, x, tiled=tiled))
            with in_float32(autoencoder):
                picture = decode_image(autoencoder, latents.to(runtime.device).float(), tiled=tiled, work=runtime.work)
    if not torch.isfinite(picture).all():
        error = NonFinite("the decoded picture is not finite; the latents or the autoencoder's weights are damaged")
        raise with_bad_weight(error, autoencoder)
    return picture
