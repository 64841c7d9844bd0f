"""Text to latents: from pure noise, told nothing but the prompts."""

from dataclasses import dataclass

from torch import Tensor

from enlarger.diffusion.sample import OnStep, unchanged
from enlarger.tasks.latent_diffusion import LatentDiffusion
from enlarger.tasks.sampling import GuidedConditioning, SamplingPlan


@dataclass(frozen=True, eq=False)
class TextToImageJob:
    """One batch of B latents of `size` (h, w). `initial` replaces the first unit noise, (B, C, h, w)."""

    conditioning: GuidedConditioning
    size: tuple[int, int]
    plan: SamplingPlan
    initial_noise: Tensor | None = None


def text_to_image(latent_diffusion: LatentDiffusion, job: TextToImageJob, on_step: OnStep = unchanged) -> Tensor:
    """Latents (B, C, h, w) in float32, scaled as the checkpoint's autoencoder scales them."""
    tokens = job.conditioning.positive.tokens
    assert tokens is not None, "Stable Diffusion is always told tokens"
    unit_noise = latent_diffusion.draw_noise(
        latent_diffusion.latent_shape(len(tokens), job.size), job.plan.noise, job.initial_noise
    )
    return latent_diffusion.sample(
        job.conditioning, unit_noise * job.plan.sigma_schedule.init_noise_sigma, job.plan, on_step
    )
