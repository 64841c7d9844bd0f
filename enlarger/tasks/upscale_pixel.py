"""The Stable Diffusion x4 upscaler: a low-resolution picture beside the noisy latents of one four times as large."""

from dataclasses import dataclass

import torch
from torch import Tensor

from enlarger.diffusion.noise import PerImage
from enlarger.diffusion.schedule import NoiseSchedule
from enlarger.errors import InputError
from enlarger.tasks.denoise import Method, Told
from enlarger.tasks.networks import Networks, each
from enlarger.tasks.parts import Watch, quiet


@dataclass(frozen=True, eq=False)
class PixelUpscaleJob:
    """`image` (N, 3, h, w) in -1..1 for B prompts, N divides B; noise of step `level` of `low_res` is added to it.

    `initial` replaces the unit noise, (B, C, h, w).
    """

    told: Told
    image: Tensor
    method: Method
    level: int
    low_res: NoiseSchedule
    initial: Tensor | None = None


def upscale_pixel(networks: Networks, job: PixelUpscaleJob, watch: Watch = quiet) -> Tensor:
    """Latents (B, C, h, w) in float32. Noise is drawn for the pictures, then for the start.

    Results of one picture share its noise, unless each has a generator of its own.
    """
    if not 0 <= job.level < job.low_res.count:
        raise InputError(f"the noise level is {job.level}, expected 0 to {job.low_res.count - 1}")
    tokens, noise = job.told.positive.tokens, job.method.noise
    assert tokens is not None, "Stable Diffusion is always told tokens"
    image = job.image.to(networks.runtime.device, networks.dtype)
    image = each(image, len(tokens)) if isinstance(noise, PerImage) else image
    sigma = float(job.low_res.sigmas[job.level])
    noisy = (image.float() + sigma * noise(image).float()) / (sigma**2 + 1) ** 0.5
    unit = networks.draw(networks.shape(len(tokens), (image.shape[2], image.shape[3])), noise, job.initial)
    label = torch.full((len(tokens),), job.level, device=image.device)
    told = job.told.beside(concat=each(noisy, len(tokens)), label=label)
    return networks.denoise(told, unit * job.method.course.start, job.method, watch)
