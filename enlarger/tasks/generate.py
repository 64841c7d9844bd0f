"""Prompts in, pictures out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from enlarger.diffusion.guidance import Guidance
from enlarger.errors import Unsupported
from enlarger.images import Picture, to_pil
from enlarger.requests import GenerateRequest, filled, one_per, seeds_for
from enlarger.runtime.runtime import Offload
from enlarger.tasks.model import Model, load_model
from enlarger.tasks.parts import Result, Watch, quiet
from enlarger.tasks.text_to_image import TextToImageJob, text_to_image
from enlarger.tasks.told import Sizes

KINDS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


@dataclass(frozen=True, eq=False)
class Generator:
    """A loaded text-to-image checkpoint; calling it with a request makes the request's pictures."""

    model: Model

    def __call__(self, request: GenerateRequest, watch: Watch = quiet) -> Result:
        """Each prompt gives `count` pictures of exactly the size asked for, in order."""
        model, networks = self.model, self.model.networks
        options = filled(request, "generate/xl" if model.sized else "generate")
        prompts, negatives = pairs(request.prompt, request.negative, request.count)
        seeds = seeds_for(request.seed, len(prompts))
        side = model.side * networks.vae.factor
        width, height = (side if asked is None else asked for asked in (request.width, request.height))
        guidance = Guidance(options["guidance"], request.rescale)
        sizes = Sizes((height, width), (0, 0), (height, width))
        told = model.tell(
            prompts, negatives if guidance.scale != 1 else None, guidance, sizes, long=request.long_prompt
        )
        size = latent_size(model, height, width)
        job = TextToImageJob(told, size, model.method(options["steps"], options["solver"], seeds))
        made = networks.decode(text_to_image(networks, job, watch))
        return Result(to_pictures(made[..., :height, :width]), tuple(seeds), model.name)


def pairs(prompt: str | Sequence[str], negative: str | Sequence[str], count: int) -> tuple[list[str], list[str]]:
    """Prompts and negative prompts, each `count` times in a row."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    negatives = one_per(negative, len(prompts), "negative")
    return [p for p in prompts for _ in range(count)], [n for n in negatives for _ in range(count)]


def latent_size(model: Model, height: int, width: int) -> tuple[int, int]:
    """The latents that cover a picture, in sizes that the network halves evenly."""
    multiple, factor = model.granularity, model.networks.vae.factor
    high, wide = (-(-side // multiple) * multiple // factor for side in (height, width))
    return high, wide


def to_pictures(made: Tensor) -> tuple[Any, ...]:
    """A batch about -1..1 as PIL images."""
    return tuple(to_pil(Picture(one.cpu())) for one in made)


def generate(
    prompt: Any, *, model: str | Path, device: str = "auto", precision: str = "auto", offload: Offload = "none",
    watch: Watch = quiet, **options: Any,
) -> Result:  # fmt: skip
    """Make pictures from text with the Stable Diffusion checkpoint in a folder; `options` are `GenerateRequest`'s."""
    return load_generator(model, device, precision, offload)(GenerateRequest(prompt, **options), watch)


def load_generator(
    model: str | Path, device: str = "auto", precision: str = "auto", offload: Offload = "none"
) -> Generator:
    """Load a text-to-image checkpoint once for many requests."""
    found = load_model(model, device, precision, offload)
    channels = found.networks.unet.config.in_channels
    if found.kind not in KINDS or channels != found.networks.vae.config.latent_channels:
        raise Unsupported(
            f"{model}: holds a {found.kind}, expected one of {', '.join(KINDS)} with a text-to-image UNet"
        )
    return Generator(found)
