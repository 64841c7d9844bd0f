"""What one step of each task asks of the network: what is noised, what is told, what is predicted, how it counts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.diffusion.conditioning import Conditioning
from enlarger.diffusion.schedule import NoiseSchedule
from enlarger.image.random_mask import lama_mask
from enlarger.image.resize import resize
from enlarger.nn.autoencoder import Posterior
from enlarger.tasks.auxiliary.depth_estimator import normalise_depth
from enlarger.tasks.latent_diffusion.latent_diffusion import LatentDiffusion
from enlarger.train.captions import Captions
from enlarger.train.data import TrainingBatch
from enlarger.train.data.cache import TensorCache
from enlarger.train.draws import Draws
from enlarger.train.noising import Noised, Noising

Network = Callable[..., Tensor]


class Extras(Protocol):
    """What a task tells beside the text: fields of `Conditioning`, given pixels, clean latents and the text's own."""

    def __call__(self, pixels: Tensor, clean: Tensor, text: Conditioning, draws: Draws) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss of a batch, and its parts."""

    latent_diffusion: LatentDiffusion
    noising: Noising
    text: Captions
    extras: Extras
    cache: TensorCache | None = None  # of the pictures' latents

    def __call__(self, network: Network, batch: TrainingBatch, draws: Draws) -> Tensor:
        clean, told = self.prepare(batch, draws)
        return squared_error(network, self.noising(clean, draws), told)

    def prepare(self, batch: TrainingBatch, draws: Draws) -> tuple[Tensor, Conditioning]:
        """The clean latents (B, C, h, w), and what the network is told."""
        pixels = batch.pixels.to(self.latent_diffusion.runtime.device)
        clean = self._encode(pixels, batch.keys, draws)
        text = self.text(batch, draws)
        told = replace(text, **self.extras(pixels, clean, text, draws))
        return clean, told.cast(clean.device, clean.dtype)

    def _encode(self, pixels: Tensor, keys: Sequence[str], draws: Draws) -> Tensor:
        """Sampled latents (B, C, h, w). With a cache, the distributions of pictures encoded before are read from it."""
        if self.cache is None:
            return encode(self.latent_diffusion, pixels, draws)
        found = [self.cache.get(key, lambda row=row: self._moments(row)) for key, row in zip(keys, pixels, strict=True)]
        mean, std = (torch.stack([each[name] for each in found]).to(pixels.device) for name in ("mean", "std"))
        posterior = Posterior(mean, std, is_exact=not bool(std.any()))
        return self.latent_diffusion.sample_posterior(posterior, draws.normal).clone()

    def _moments(self, picture: Tensor) -> dict[str, Tensor]:
        """Of one picture by itself, so that they depend on no other in its batch."""
        posterior = self.latent_diffusion.posterior(picture[None])
        std = torch.zeros_like(posterior.mean) if posterior.is_exact else posterior.std
        return {"mean": posterior.mean[0], "std": std[0]}


def squared_error(network: Network, noised: Noised, told: Conditioning) -> Tensor:
    """The mean over the batch of each sample's weighted mean squared error.

    A channel more than the target has is the logarithm of the error's variance, whose likelihood is then learned, as in
    k-diffusion's `DenoiserWithVariance`.
    """
    output = network(told.join(noised.x), noised.time, **told.inputs).float()
    channels = noised.target.shape[1]
    error = (output[:, :channels] - noised.target.float()).square()
    if output.shape[1] > channels:
        log_variance = output[:, channels:].mean((1, 2, 3), keepdim=True)
        error = (error / log_variance.exp() + log_variance) / 2
    return (error.flatten(1).mean(1) * noised.weight).mean()


def encode(latent_diffusion: LatentDiffusion, pixels: Tensor, draws: Draws) -> Tensor:
    """Pictures (B, 3, H, W) to sampled latents, as an ordinary tensor that gradients may pass by."""
    return latent_diffusion.encode(pixels, draws.normal).clone()


def nothing(pixels: Tensor, clean: Tensor, text: Conditioning, draws: Draws) -> Mapping[str, Tensor]:
    """The text alone: text to image, and LoRA."""
    return {}


@dataclass(frozen=True, eq=False)
class MaskedPicture:
    """Inpainting: one of LaMa's masks, and the latents of the picture without what it covers."""

    latent_diffusion: LatentDiffusion

    def __call__(self, pixels: Tensor, clean: Tensor, text: Conditioning, draws: Draws) -> Mapping[str, Tensor]:
        size = (pixels.shape[2], pixels.shape[3])
        mask = torch.stack([lama_mask(size, generator) for generator in draws.generators]).to(pixels)
        return {"concat": self.concat(pixels, mask, draws)}

    def concat(self, pixels: Tensor, mask: Tensor, draws: Draws) -> Tensor:
        """Mask (B, 1, h, w) and masked latents, in this order."""
        masked = encode(self.latent_diffusion, pixels * (mask < 0.5), draws)
        return torch.cat([F.interpolate(mask, masked.shape[2:]).to(masked), masked], 1)


@dataclass(frozen=True, eq=False)
class DepthMap:
    """Depth: what an estimator sees in the picture, in -1..1 at the latents' size."""

    estimate: Callable[[Tensor], Tensor]

    def __call__(self, pixels: Tensor, clean: Tensor, text: Conditioning, draws: Draws) -> Mapping[str, Tensor]:
        depth = self.estimate(pixels).clone()
        return {"concat": normalise_depth(depth, (clean.shape[2], clean.shape[3])).to(clean)}


@dataclass(frozen=True, eq=False)
class NoisyPixels:
    """x4: the picture at a quarter, with noise of a drawn step of its own schedule, and that step as a label."""

    schedule: NoiseSchedule
    max_noise_level: int
    scale: int

    def __call__(self, pixels: Tensor, clean: Tensor, text: Conditioning, draws: Draws) -> Mapping[str, Tensor]:
        level, low_res = draws.whole(self.max_noise_level + 1), reduced(pixels, self.scale)
        return self.at(low_res, draws.normal(low_res), level)

    def at(self, low_res: Tensor, noise: Tensor, level: Tensor) -> Mapping[str, Tensor]:
        """The same of given noise and levels (B,)."""
        sigma = self.schedule.sigmas[level].to(low_res)[:, None, None, None]
        return {"concat": (low_res + sigma * noise) * torch.rsqrt(sigma**2 + 1), "label": level}


@dataclass(frozen=True, eq=False)
class NoisyLatents:
    """x2: latents of the picture at half its size with noise of a drawn level, doubled, and an embedding of that level.

    The embedding, cos and sin of 2 pi w log(1 + level) for `frequencies` w (64, 1), joins the pooled text.
    """

    latent_diffusion: LatentDiffusion
    frequencies: Tensor
    max_noise_level: float

    def __call__(self, pixels: Tensor, clean: Tensor, text: Conditioning, draws: Draws) -> Mapping[str, Tensor]:
        low_res = encode(self.latent_diffusion, reduced(pixels, 2), draws)
        level = self.max_noise_level * draws.uniform()
        return self.at(low_res, draws.normal(low_res), level, text)

    def at(self, low_res: Tensor, noise: Tensor, level: Tensor, text: Conditioning) -> Mapping[str, Tensor]:
        """The same of given noise and levels (B,)."""
        assert text.vector is not None, "the pooled text"
        sigma = level.to(low_res)[:, None, None, None]
        noisy = (low_res + sigma * noise) * torch.rsqrt(sigma**2 + 1)
        angles = 2 * torch.pi * level.to(low_res).log1p()[:, None] * self.frequencies.to(low_res).flatten()
        embedding = torch.cat([angles.cos(), angles.sin()], 1)
        return {
            "concat": F.interpolate(noisy, scale_factor=2.0, mode="nearest"),
            "vector": torch.cat([embedding, text.vector.to(low_res)], 1),
        }


def reduced(pixels: Tensor, factor: int) -> Tensor:
    """Pictures reduced as people reduce them, by antialiased bicubic."""
    height, width = pixels.shape[-2:]
    return resize(pixels, (height // factor, width // factor)).clamp(-1, 1)
