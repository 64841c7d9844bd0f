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
from enlarger.diffusion.sample import OnStep, Solver, unchanged
from enlarger.diffusion.sampler import Sampler, SigmaSchedule
from enlarger.errors import Unsupported
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.k_unet import KUNet
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.conditioning import GuidedConditioning, GuidedText
from enlarger.tasks.latent_diffusion import LatentDiffusion
from enlarger.tasks.sampling import SamplingPlan
from enlarger.text.encode import PromptEmbeds
from enlarger.text.tokenize import Tokenizer


@dataclass(frozen=True, eq=False)
class LatentUpscaleJob:
    """One batch: `low` is (B, 3, H, W) pictures in -1..1, sides multiples of 32, or (B, 4, h, w) latents, of 4.

    The text is for B pictures. `initial` replaces the first unit noise, (B, 4, 2h, 2w).
    """

    low_res: Tensor
    text_features: GuidedText
    sigma_schedule: SigmaSchedule
    solver: Solver
    noise: Noise
    guidance: Guidance = Guidance()
    noise_level: float = 0.0
    mask_padding: bool = False
    initial_noise: Tensor | None = None


@dataclass(frozen=True, eq=False)
class LatentUpscaler:
    """The parts of the checkpoint; `noise_frequencies` (64, 1) only exists in the original file."""

    tokenizer: Tokenizer
    text_encoder: ClipText
    unet: KUNet
    vae: AutoencoderKL
    sampler: Sampler
    runtime: Runtime = Runtime()
    noise_frequencies: Tensor | None = None

    def __call__(self, job: LatentUpscaleJob, on_step: OnStep = unchanged) -> Tensor:
        """Upscaled latents (B, 4, 2h, 2w) in float32. Noise is drawn for the encoding, the augmentation, the start."""
        latent_diffusion = self.latent_diffusion
        low_res = latent_diffusion.encode(job.low_res, job.noise)
        noisy_low_res = low_res + job.noise_level * job.noise(low_res) if job.noise_level else low_res
        negative = (
            None
            if job.text_features.negative is None
            else self._condition(job, noisy_low_res, job.text_features.negative)
        )
        conditioning = GuidedConditioning(
            self._condition(job, noisy_low_res, job.text_features.positive), negative, job.guidance
        )
        unit_noise = latent_diffusion.draw_noise(
            (*low_res.shape[:2], 2 * low_res.shape[2], 2 * low_res.shape[3]), job.noise, job.initial_noise
        )
        plan = SamplingPlan(job.sigma_schedule, job.solver, job.noise)
        return latent_diffusion.sample(conditioning, unit_noise * job.sigma_schedule.init_noise_sigma, plan, on_step)

    @property
    def latent_diffusion(self) -> LatentDiffusion:
        """The two networks; what this one predicts does not depend on a scheduler."""
        return LatentDiffusion(self.unet, self.vae, precondition.karras(), self.runtime)

    def _condition(self, job: LatentUpscaleJob, low_res: Tensor, text: PromptEmbeds) -> Conditioning:
        """The low-resolution latents by nearest neighbour, and the noise level with the pooled text."""
        concat = F.interpolate(low_res, scale_factor=2, mode="nearest") * (job.noise_level**2 + 1) ** -0.5
        level_embedding = self._embed_noise_level(job.noise_level).to(text.pooled).expand(len(text.pooled), -1)
        mask = text.mask if job.mask_padding else None
        return Conditioning(text.tokens, mask, torch.cat([level_embedding, text.pooled], 1), concat=concat)

    def _embed_noise_level(self, noise_level: float) -> Tensor:
        """cos and sin of 2 pi w log(1 + level); w is only needed above level 0."""
        if noise_level == 0:
            return torch.cat([torch.ones(64), torch.zeros(64)])
        if self.noise_frequencies is None:
            raise Unsupported(
                f"noise_level is {noise_level:g}, but these weights lack low_res_noise_embed.weight, as every "
                "diffusers folder of this model does; use noise_level 0 or the original checkpoint"
            )
        angles = 2 * math.pi * math.log1p(noise_level) * self.noise_frequencies.flatten()
        return torch.cat([angles.cos(), angles.sin()])
