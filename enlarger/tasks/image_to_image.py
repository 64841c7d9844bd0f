"""Pictures to latents like them (SDEdit, Meng et al. 2022): from the picture's latents with noise, part of the way."""

from dataclasses import dataclass

from torch import Tensor

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
    """Latents (B, C, h, w) in float32. Noise is drawn for the encoding, then for the start."""
    tokens = job.told.positive.tokens
    assert tokens is not None, "Stable Diffusion is always told tokens"
    start = each(networks.encode(job.image, job.method.noise), len(tokens))
    if not job.noisy:
        start = start + job.method.course.ladder[0] * networks.draw(start.shape, job.method.noise)
    return networks.denoise(job.told, start, job.method, watch)
