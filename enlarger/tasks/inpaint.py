"""Repainting what a mask covers, with a network made for it (9 channels) or with an ordinary one (4 channels)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.errors import InputError
from enlarger.tasks.denoise import Keep, Method, Told
from enlarger.tasks.networks import Networks, each
from enlarger.tasks.parts import Watch, quiet


@dataclass(frozen=True, eq=False)
class InpaintJob:
    """`image` (N, 3, H, W) in -1..1 or its latents, `mask` (N, 1, H, W) from 0 keep to 1 repaint; N divides B.

    `masked` replaces the picture with its covered part grey, or that picture's latents. Noise of the course's first
    level is added to the picture unless `blank`: then the start is pure noise. `noisy` says that `image` is latents
    with that noise already. A `soft` mask is averaged over each latent's pixels, otherwise one of them decides.
    `initial` replaces the unit noise (B, C, h, w).
    """

    told: Told
    image: Tensor
    mask: Tensor
    method: Method
    masked: Tensor | None = None
    blank: bool = False
    noisy: bool = False
    soft: bool = False
    initial: Tensor | None = None


def inpaint(networks: Networks, job: InpaintJob, watch: Watch = quiet) -> Tensor:
    """Latents (B, C, h, w) in float32.

    Noise is drawn for the encoding of the picture (with 9 channels only where the start needs it), for the start, and
    for the encoding of the masked picture.
    """
    channels, extra = networks.vae.config.latent_channels, _extra_channels(networks)
    tokens, noise, course = job.told.positive.tokens, job.method.noise, job.method.course
    assert tokens is not None, "Stable Diffusion is always told tokens"
    clean = None if extra and job.blank else each(networks.encode(job.image, noise), len(tokens))
    size = _latent_size(job, networks)
    unit = networks.draw((len(tokens), channels, *size), noise, job.initial)
    mask = each(latent_mask(job.mask, size, soft=job.soft).to(unit), len(tokens))
    if job.blank or clean is None:
        start = unit * course.start
    else:
        start = clean if job.noisy else clean + course.ladder[0] * unit
    if extra:
        hidden = networks.encode(_masked(job), noise)
        told = job.told.beside(concat=torch.cat([mask, each(hidden, len(tokens))], 1))
        return networks.denoise(told, start, job.method, watch)
    networks.draw((len(job.image), channels, *size), noise)  # keeps the noise that follows the same for both kinds
    assert clean is not None
    return networks.denoise(job.told, start, job.method, watch, Keep(clean, unit, mask))


def latent_mask(mask: Tensor, size: tuple[int, int], *, soft: bool = False) -> Tensor:
    """A mask (N, 1, H, W) at the latents' size."""
    return F.interpolate(mask, size, mode="area" if soft else "nearest")


def _extra_channels(networks: Networks) -> bool:
    """Whether the network takes the mask and the masked picture; InputError if it can do neither."""
    found, channels = networks.unet.config.in_channels, networks.vae.config.latent_channels
    if found not in (channels, 2 * channels + 1):
        raise InputError(
            f"the UNet takes {found} channels, expected {2 * channels + 1} of an inpainting checkpoint or {channels} "
            "of an ordinary one"
        )
    return found != channels


def _latent_size(job: InpaintJob, networks: Networks) -> tuple[int, int]:
    factor = 1 if job.image.shape[1] == networks.vae.config.latent_channels else networks.vae.factor
    return job.image.shape[2] // factor, job.image.shape[3] // factor


def _masked(job: InpaintJob) -> Tensor:
    """The picture with middle grey where the mask covers at least half."""
    if job.masked is not None:
        return job.masked
    if job.image.shape[1] != 3:
        raise InputError("found latents without `masked`; an inpainting network needs the picture to hide a part of it")
    return job.image * (job.mask < 0.5).to(job.image)
