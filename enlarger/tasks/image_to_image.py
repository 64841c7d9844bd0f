"""Pictures to latents like them (SDEdit, Meng et al. 2022): from the picture's latents with noise, part of the way."""

from dataclasses import dataclass

from torch import Tensor

from enlarger.diffusion.noise import PerSampleGenerators
from enlarger.diffusion.sample import OnStep, unchanged
from enlarger.tasks.latent_diffusion import LatentDiffusion, repeat_each
from enlarger.tasks.sampling import GuidedConditioning, SamplingPlan


@dataclass(frozen=True, eq=False)
class ImageToImageJob:
    """`image` (N, 3, H, W) in -1..1, or latents (N, C, h, w), for B prompts; N divides B.

    Noise of the course's first level is added, unless `noisy`: then the latents carry it already, as clean + sigma *
    noise. What else the network is told (a depth map) is in `told`.
    """

    conditioning: GuidedConditioning
    image: Tensor
    plan: SamplingPlan
    is_noisy: bool = False


def image_to_image(latent_diffusion: LatentDiffusion, job: ImageToImageJob, on_step: OnStep = unchanged) -> Tensor:
    """Latents (B, C, h, w) in float32. Noise is drawn for the encoding, then for the start.

    Results of one picture share its encoding's noise, unless each has a generator of its own.
    """
    tokens, noise = job.conditioning.positive.tokens, job.plan.noise
    assert tokens is not None, "Stable Diffusion is always told tokens"
    image = repeat_each(job.image, len(tokens)) if isinstance(noise, PerSampleGenerators) else job.image
    latents = repeat_each(latent_diffusion.encode(image, noise), len(tokens))
    if not job.is_noisy:
        latents = latents + job.plan.sigma_schedule.sigmas[0] * latent_diffusion.draw_noise(latents.shape, noise)
    return latent_diffusion.sample(job.conditioning, latents, job.plan, on_step)
