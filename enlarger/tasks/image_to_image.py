"""Pictures to latents like them (SDEdit, Meng et al. 2022): from the picture's latents with noise, part of the way."""

from dataclasses import dataclass

from torch import Tensor

from enlarger.diffusion.noise import PerImage
from enlarger.tasks.denoise import Method, Told
from enlarger.tasks.networks import Networks, each
from enlarger.tasks.parts import Watch, quiet


@dataclass(frozen=True, eq=False)
class ImageToImageJob:
    """`image` (N, 3, H, W) in -1..1, or latents (N, C, h, w), for B prompts; N divides B.

    Noise of the course's first level is added, unless `noisy`: then the latents carry it already, as clean + sigma *
    noise. What else the network is told (a depth map) is in `told`.
    """

    told: Told
    image: Tensor
    method: Method
    noisy: bool = False


def image_to_image(networks: Networks, job: ImageToImageJob, watch: Watch = quiet) -> Tensor:
    """Latents (B, C, h, w) in float32. Noise is drawn for the encoding, then for the start.

    Results of one picture share its encoding's noise, unless each has a generator of its own.
    """
    tokens, noise = job.told.positive.tokens, job.method.noise
    assert tokens is not None, "Stable Diffusion is always told tokens"
    image = each(job.image, len(tokens)) if isinstance(noise, PerImage) else job.image
    start = each(networks.encode(image, noise), len(tokens))
    if not job.noisy:
        start = start + job.method.course.ladder[0] * networks.draw(start.shape, noise)
    return networks.denoise(job.told, start, job.method, watch)
