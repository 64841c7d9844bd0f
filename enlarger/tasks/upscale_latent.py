"""The Stable Diffusion x2 latent upscaler (Katherine Crowson): latents or pictures to latents of twice the size."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.diffusion import precondition
from enlarger.diffusion.conditioning import Conditioning, stack
from enlarger.diffusion.denoiser import Denoiser
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Solver, sample
from enlarger.diffusion.sampler import Course, Sampler
from enlarger.errors import InputError, Unsupported
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.k_unet import KUNet
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.parts import Text, Watch, quiet, watch_steps
from enlarger.text.encode import Encoded
from enlarger.text.tokenize import Tokenizer


@dataclass(frozen=True, eq=False)
class LatentUpscaleJob:
    """One batch: `low` is (B, 3, H, W) pictures in -1..1, sides multiples of 32, or (B, 4, h, w) latents, of 4.

    The text is for B pictures. `initial` replaces the first unit noise, (B, 4, 2h, 2w).
    """

    low: Tensor
    text: Text
    course: Course
    solver: Solver
    noise: Noise
    guidance: Guidance = Guidance()
    level: float = 0.0
    mask_padding: bool = False
    initial: Tensor | None = None


@dataclass(frozen=True, eq=False)
class LatentUpscale:
    """The parts of the checkpoint; `noise_frequencies` (64, 1) only exists in the original file."""

    tokenizer: Tokenizer
    text_encoder: ClipText
    unet: KUNet
    vae: AutoencoderKL
    sampler: Sampler
    runtime: Runtime = Runtime()
    noise_frequencies: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the denoising network."""
        return next(self.unet.parameters()).dtype

    def __call__(self, job: LatentUpscaleJob, watch: Watch = quiet) -> Tensor:
        """Upscaled latents (B, 4, 2h, 2w) in float32. Noise is drawn for the encoding, the augmentation, the start."""
        low = self.encode(job.low, job.noise)
        noisy = low + job.level * job.noise(low) if job.level else low
        conditioning = self._condition(job, noisy, job.text.positive)
        guided = (
            None if job.text.negative is None else stack(self._condition(job, noisy, job.text.negative), conditioning)
        )
        start = torch.empty(*low.shape[:2], 2 * low.shape[2], 2 * low.shape[3], dtype=self.dtype, device=low.device)
        unit = job.noise(start) if job.initial is None else job.initial.to(low.device)
        with self.runtime.hold(self.unet):
            denoise = Denoiser(self.unet, self.dtype, precondition.karras(), conditioning, guided, job.guidance)
            seen = watch_steps(watch, len(job.course.ladder) - 1)
            x = sample(job.solver, denoise, unit.float() * job.course.start, job.course.ladder, job.noise, seen)
        return x * job.course.end

    def encode(self, low: Tensor, noise: Noise) -> Tensor:
        """Pictures to sampled latents; latents as they are, float32."""
        if low.shape[1] == self.vae.config.latent_channels:
            return low.to(self.runtime.device).float()
        if low.shape[1] != 3:
            raise InputError(f"found {low.shape[1]} channels, expected 3 of a picture or 4 of Stable Diffusion latents")
        with self.runtime.hold(self.vae), torch.inference_mode():
            posterior = self.vae.encode(low.to(self.runtime.device, next(self.vae.parameters()).dtype))
            return posterior.sample(noise(posterior.mean)).float()

    def _condition(self, job: LatentUpscaleJob, low: Tensor, text: Encoded) -> Conditioning:
        """The low-resolution latents by nearest neighbour, and the noise level with the pooled text."""
        concat = F.interpolate(low, scale_factor=2, mode="nearest") * (job.level**2 + 1) ** -0.5
        level = self._embed_level(job.level).to(text.pooled).expand(len(text.pooled), -1)
        mask = text.mask if job.mask_padding else None
        return Conditioning(text.tokens, mask, torch.cat([level, text.pooled], 1), concat=concat)

    def _embed_level(self, level: float) -> Tensor:
        """cos and sin of 2 pi w log(1 + level); w is only needed above level 0."""
        if level == 0:
            return torch.cat([torch.ones(64), torch.zeros(64)])
        if self.noise_frequencies is None:
            raise Unsupported(
                f"noise_level is {level:g}, but these weights lack low_res_noise_embed.weight, as every "
                "diffusers folder of this model does; use noise_level 0 or the original checkpoint"
            )
        angles = 2 * math.pi * math.log1p(level) * self.noise_frequencies.flatten()
        return torch.cat([angles.cos(), angles.sin()])
