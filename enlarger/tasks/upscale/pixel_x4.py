"""The Stable Diffusion x4 upscaler: a low-resolution picture beside the noisy latents of one four times as large."""

from dataclasses import dataclass

import torch
from torch import Tensor

from enlarger.diffusion.noise import PerSampleGenerators
from enlarger.diffusion.sample import OnStep, unchanged
from enlarger.diffusion.schedule import NoiseSchedule
from enlarger.errors import InputError
from enlarger.tasks.conditioning import GuidedConditioning
from enlarger.tasks.latent_diffusion import LatentDiffusion, repeat_each
from enlarger.tasks.sampling import SamplingPlan


@dataclass(frozen=True, eq=False)
class PixelUpscaleJob:
    """`image` (N, 3, h, w) in -1..1 for B prompts, N divides B; noise of step `level` of `low_res` is added to it.

    `initial` replaces the unit noise, (B, C, h, w).
    """

    conditioning: GuidedConditioning
    image: Tensor
    plan: SamplingPlan
    noise_level: int
    low_res_schedule: NoiseSchedule
    initial_noise: Tensor | None = None


def upscale_pixel_x4(latent_diffusion: LatentDiffusion, job: PixelUpscaleJob, on_step: OnStep = unchanged) -> Tensor:
    """Latents (B, C, h, w) in float32. Noise is drawn for the pictures, then for the start.

    Results of one picture share its noise, unless each has a generator of its own.
    """
    if not 0 <= job.noise_level < job.low_res_schedule.num_train_timesteps:
        raise InputError(
            f"the noise level is {job.noise_level}, expected 0 to {job.low_res_schedule.num_train_timesteps - 1}"
        )
    tokens, noise = job.conditioning.positive.tokens, job.plan.noise
    assert tokens is not None, "Stable Diffusion is always told tokens"
    image = job.image.to(latent_diffusion.runtime.device, latent_diffusion.dtype)
    image = repeat_each(image, len(tokens)) if isinstance(noise, PerSampleGenerators) else image
    sigma = float(job.low_res_schedule.sigmas[job.noise_level])
    noisy = (image.float() + sigma * noise(image).float()) / (sigma**2 + 1) ** 0.5
    unit_noise = latent_diffusion.draw_noise(
        latent_diffusion.latent_shape(len(tokens), (image.shape[2], image.shape[3])), noise, job.initial_noise
    )
    noise_label = torch.full((len(tokens),), job.noise_level, device=image.device)
    conditioning = job.conditioning.with_fields(concat=repeat_each(noisy, len(tokens)), label=noise_label)
    return latent_diffusion.sample(
        conditioning, unit_noise * job.plan.sigma_schedule.init_noise_sigma, job.plan, on_step
    )
