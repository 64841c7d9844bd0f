"""Repainting what a mask covers, with a network made for it (9 channels) or with an ordinary one (4 channels)."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.diffusion.noise import Noise, PerImage
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
    `initial` replaces the unit noise (B, C, h, w). `reveal` has the masked picture encoded for a network of 4 channels
    too, which does not need it.
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
    reveal: bool = False


@dataclass(frozen=True, eq=False)
class InpaintStart:
    """A job made ready: the first latents, what the network is told, and what stays as it is beside the network.

    `mask` (B, 1, h, w) and `masked`, the latents of the masked picture (B, C, h, w), are for whoever wants to see them;
    `masked` is None where nothing needs it.
    """

    told: Told
    latents: Tensor
    mask: Tensor
    masked: Tensor | None = None
    keep: Keep | None = None

    def run(self, networks: Networks, method: Method, watch: Watch = quiet) -> Tensor:
        """Latents (B, C, h, w) in float32."""
        return networks.denoise(self.told, self.latents, method, watch, self.keep)


def inpaint(networks: Networks, job: InpaintJob, watch: Watch = quiet) -> Tensor:
    """Latents (B, C, h, w) in float32. For the noise see `prepare`."""
    return prepare(networks, job).run(networks, job.method, watch)


def prepare(networks: Networks, job: InpaintJob) -> InpaintStart:
    """All that comes before the first step.

    Noise is drawn for the encoding of the picture (with 9 channels only where the start needs it), for the start, and
    for the encoding of the masked picture. Results of one picture share what is drawn for its encodings, unless each
    has a generator of its own.
    """
    extra, tokens = _extra_channels(networks), job.told.positive.tokens
    assert tokens is not None, "Stable Diffusion is always told tokens"
    count, noise, course = len(tokens), job.method.noise, job.method.course
    if isinstance(noise, PerImage):
        job = replace(job, image=each(job.image, count), mask=each(job.mask, count))
    clean = None if extra and job.blank else each(networks.encode(job.image, noise), count)
    size = _latent_size(job, networks)
    unit = networks.draw(networks.shape(count, size), noise, job.initial)
    start = unit * course.start
    if clean is not None and not job.blank:
        start = clean if job.noisy else clean + course.ladder[0] * unit
    mask = each(latent_mask(job.mask, size, soft=job.soft).to(unit), count)
    masked = _masked(networks, job, noise, wanted=extra or job.reveal)
    if extra:
        assert masked is not None
        told = job.told.beside(concat=torch.cat([mask, each(masked, count)], 1))
        return InpaintStart(told, start, mask, each(masked, count))
    assert clean is not None
    keep = Keep(clean, unit, mask)
    return InpaintStart(job.told, start, mask, None if masked is None else each(masked, count), keep)


def latent_mask(mask: Tensor, size: tuple[int, int], *, soft: bool = False) -> Tensor:
    """A mask (N, 1, H, W) at the latents' size."""
    return F.interpolate(mask, size, mode="area" if soft else "nearest")


def _extra_channels(networks: Networks) -> bool:
    """Whether the network takes the mask and the masked picture; InputError if it can do neither."""
    found, channels = networks.config.in_channels, networks.vae.config.latent_channels
    if found not in (channels, 2 * channels + 1):
        raise InputError(
            f"the UNet takes {found} channels, expected {2 * channels + 1} of an inpainting checkpoint or {channels} "
            "of an ordinary one"
        )
    return found != channels


def _latent_size(job: InpaintJob, networks: Networks) -> tuple[int, int]:
    factor = 1 if job.image.shape[1] == networks.vae.config.latent_channels else networks.vae.factor
    return job.image.shape[2] // factor, job.image.shape[3] // factor


def _masked(networks: Networks, job: InpaintJob, noise: Noise, *, wanted: bool) -> Tensor | None:
    """Latents of the picture with middle grey where the mask covers at least half.

    Where they are not wanted, None; the noise of their encoding is drawn all the same, so that what follows does not
    depend on that.
    """
    if job.masked is not None:
        return networks.encode(job.masked, noise)
    if wanted and job.image.shape[1] != 3:
        raise InputError("found latents without `masked`; an inpainting network needs the picture to hide a part of it")
    if wanted:
        return networks.encode(job.image * (job.mask < 0.5).to(job.image), noise)
    networks.draw(networks.shape(max(len(job.image), len(job.mask)), _latent_size(job, networks)), noise)
    return None
