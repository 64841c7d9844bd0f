"""The Stable Diffusion x2 latent upscaler (Katherine Crowson): latents or pictures to latents of twice the size."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.diffusion import precondition
from enlarger.diffusion.conditioning import Conditioning
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.noise import Noise
from enlarger.diffusion.sample import Solver
from enlarger.diffusion.sampler import Course, Sampler
from enlarger.errors import Unsupported
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.k_unet import KUNet
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.denoise import Method, Told
from enlarger.tasks.networks import Networks
from enlarger.tasks.parts import Text, Watch, quiet
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

    def __call__(self, job: LatentUpscaleJob, watch: Watch = quiet) -> Tensor:
        """Upscaled latents (B, 4, 2h, 2w) in float32. Noise is drawn for the encoding, the augmentation, the start."""
        networks = self.networks
        low = networks.encode(job.low, job.noise)
        noisy = low + job.level * job.noise(low) if job.level else low
        negative = None if job.text.negative is None else self._condition(job, noisy, job.text.negative)
        told = Told(self._condition(job, noisy, job.text.positive), negative, job.guidance)
        unit = networks.draw((*low.shape[:2], 2 * low.shape[2], 2 * low.shape[3]), job.noise, job.initial)
        method = Method(job.course, job.solver, job.noise)
        return networks.denoise(told, unit * job.course.start, method, watch)

    @property
    def networks(self) -> Networks:
        """The two networks; what this one predicts does not depend on a scheduler."""
        return Networks(self.unet, self.vae, precondition.karras(), self.runtime)

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
