"""Repainting what a mask covers, with a network made for it (9 channels) or with an ordinary one (4 channels)."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.diffusion.noise import Noise, PerSampleGenerators
from enlarger.diffusion.sample import OnStep, unchanged
from enlarger.errors import InputError
from enlarger.tasks.latent_diffusion import LatentDiffusion, repeat_each
from enlarger.tasks.sampling import GuidedConditioning, KnownRegion, SamplingPlan


@dataclass(frozen=True, eq=False)
class InpaintJob:
    """`image` (N, 3, H, W) in -1..1 or its latents, `mask` (N, 1, H, W) from 0 keep to 1 repaint; N divides B.

    `masked` replaces the picture with its covered part grey, or that picture's latents. Noise of the course's first
    level is added to the picture unless `blank`: then the start is pure noise. `noisy` says that `image` is latents
    with that noise already. A `soft` mask is averaged over each latent's pixels, otherwise one of them decides.
    `initial` replaces the unit noise (B, C, h, w). `reveal` has the masked picture encoded for a network of 4 channels
    too, which does not need it.
    """

    conditioning: GuidedConditioning
    image: Tensor
    mask: Tensor
    plan: SamplingPlan
    masked_image: Tensor | None = None
    from_pure_noise: bool = False
    is_noisy: bool = False
    soft_mask: bool = False
    initial_noise: Tensor | None = None
    encode_masked_image: bool = False


@dataclass(frozen=True, eq=False)
class PreparedInpaint:
    """A job made ready: the first latents, what the network is told, and what stays as it is beside the network.

    `mask` (B, 1, h, w) and `masked`, the latents of the masked picture (B, C, h, w), are for whoever wants to see them;
    `masked` is None where nothing needs it.
    """

    conditioning: GuidedConditioning
    latents: Tensor
    mask: Tensor
    masked_image_latents: Tensor | None = None
    known_region: KnownRegion | None = None

    def run(self, latent_diffusion: LatentDiffusion, plan: SamplingPlan, on_step: OnStep = unchanged) -> Tensor:
        """Latents (B, C, h, w) in float32."""
        return latent_diffusion.sample(self.conditioning, self.latents, plan, on_step, self.known_region)


def inpaint(latent_diffusion: LatentDiffusion, job: InpaintJob, on_step: OnStep = unchanged) -> Tensor:
    """Latents (B, C, h, w) in float32. For the noise see `prepare`."""
    return prepare_inpaint(latent_diffusion, job).run(latent_diffusion, job.plan, on_step)


def prepare_inpaint(latent_diffusion: LatentDiffusion, job: InpaintJob) -> PreparedInpaint:
    """All that comes before the first step.

    Noise is drawn for the encoding of the picture (with 9 channels only where the start needs it), for the start, and
    for the encoding of the masked picture. Results of one picture share what is drawn for its encodings, unless each
    has a generator of its own.
    """
    takes_mask, tokens = _takes_mask(latent_diffusion), job.conditioning.positive.tokens
    assert tokens is not None, "Stable Diffusion is always told tokens"
    count, noise, sigma_schedule = len(tokens), job.plan.noise, job.plan.sigma_schedule
    if isinstance(noise, PerSampleGenerators):
        job = replace(job, image=repeat_each(job.image, count), mask=repeat_each(job.mask, count))
    image_latents = (
        None if takes_mask and job.from_pure_noise else repeat_each(latent_diffusion.encode(job.image, noise), count)
    )
    size = _latent_size(job, latent_diffusion)
    unit_noise = latent_diffusion.draw_noise(latent_diffusion.latent_shape(count, size), noise, job.initial_noise)
    latents = unit_noise * sigma_schedule.init_noise_sigma
    if image_latents is not None and not job.from_pure_noise:
        latents = image_latents if job.is_noisy else image_latents + sigma_schedule.sigmas[0] * unit_noise
    mask = repeat_each(latent_mask(job.mask, size, soft_mask=job.soft_mask).to(unit_noise), count)
    masked_latents = _masked_latents(latent_diffusion, job, noise, encode=takes_mask or job.encode_masked_image)
    if takes_mask:
        assert masked_latents is not None
        conditioning = job.conditioning.with_fields(concat=torch.cat([mask, repeat_each(masked_latents, count)], 1))
        return PreparedInpaint(conditioning, latents, mask, repeat_each(masked_latents, count))
    assert image_latents is not None
    known_region = KnownRegion(image_latents, unit_noise, mask)
    return PreparedInpaint(
        job.conditioning,
        latents,
        mask,
        None if masked_latents is None else repeat_each(masked_latents, count),
        known_region,
    )


def latent_mask(mask: Tensor, size: tuple[int, int], *, soft_mask: bool = False) -> Tensor:
    """A mask (N, 1, H, W) at the latents' size."""
    return F.interpolate(mask, size, mode="area" if soft_mask else "nearest")


def _takes_mask(latent_diffusion: LatentDiffusion) -> bool:
    """Whether the network takes the mask and the masked picture; InputError if it can do neither."""
    in_channels, channels = latent_diffusion.unet_config.in_channels, latent_diffusion.vae.config.latent_channels
    if in_channels not in (channels, 2 * channels + 1):
        raise InputError(
            f"the UNet takes {in_channels} channels, expected {2 * channels + 1} of an inpainting checkpoint or "
            f"{channels} "
            "of an ordinary one"
        )
    return in_channels != channels


def _latent_size(job: InpaintJob, latent_diffusion: LatentDiffusion) -> tuple[int, int]:
    factor = (
        1
        if job.image.shape[1] == latent_diffusion.vae.config.latent_channels
        else latent_diffusion.vae.downsample_factor
    )
    return job.image.shape[2] // factor, job.image.shape[3] // factor


def _masked_latents(latent_diffusion: LatentDiffusion, job: InpaintJob, noise: Noise, *, encode: bool) -> Tensor | None:
    """Latents of the picture with middle grey where the mask covers at least half.

    Where they are not wanted, None; the noise of their encoding is drawn all the same, so that what follows does not
    depend on that.
    """
    if job.masked_image is not None:
        return latent_diffusion.encode(job.masked_image, noise)
    if encode and job.image.shape[1] != 3:
        raise InputError("found latents without `masked`; an inpainting network needs the picture to hide a part of it")
    if encode:
        return latent_diffusion.encode(job.image * (job.mask < 0.5).to(job.image), noise)
    latent_diffusion.draw_noise(
        latent_diffusion.latent_shape(max(len(job.image), len(job.mask)), _latent_size(job, latent_diffusion)), noise
    )
    return None
