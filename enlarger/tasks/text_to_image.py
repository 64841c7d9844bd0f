"""Text to latents: from pure noise, told nothing but the prompts."""

from dataclasses import dataclass

from torch import Tensor

from enlarger.tasks.denoise import Method, Told
from enlarger.tasks.networks import Networks
from enlarger.tasks.parts import Watch, quiet


@dataclass(frozen=True, eq=False)
class TextToImageJob:
    """One batch of B latents of `size` (h, w). `initial` replaces the first unit noise, (B, C, h, w)."""

    told: Told
    size: tuple[int, int]
    method: Method
    initial: Tensor | None = None


def text_to_image(networks: Networks, job: TextToImageJob, watch: Watch = quiet) -> Tensor:
    """Latents (B, C, h, w) in float32, scaled as the checkpoint's autoencoder scales them."""
    tokens = job.told.positive.tokens
    assert tokens is not None, "Stable Diffusion is always told tokens"
    unit = networks.draw(networks.shape(len(tokens), job.size), job.method.noise, job.initial)
    return networks.denoise(job.told, unit * job.method.course.start, job.method, watch)
