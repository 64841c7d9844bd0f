"""Text to pictures with a Stable Diffusion 1 or 2 checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from enlarger.checkpoint.configs import schedule_config
from enlarger.checkpoint.folder import Bundle, read_folder
from enlarger.diffusion.conditioning import Conditioning, stack
from enlarger.diffusion.denoiser import Denoiser
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.noise import Noise, from_seeds
from enlarger.diffusion.sample import Solver, sample
from enlarger.diffusion.sampler import Course, Sampler
from enlarger.diffusion.solvers import SOLVERS
from enlarger.errors import Unsupported
from enlarger.images import Picture, to_pil
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.unet import UNet
from enlarger.requests import GenerateRequest, filled, one_per, seeds_for
from enlarger.runtime.runtime import Offload, Runtime, pick_device, pick_precision
from enlarger.tasks.parts import Result, Text, Watch, decode, encode_text, quiet, watch_steps
from enlarger.text.encode import Encoded
from enlarger.text.tokenize import Tokenizer

GRANULARITY = 64  # pixels: the latent halves three times


@dataclass(frozen=True, eq=False)
class TextToImageJob:
    """One batch of B latents of `size` (h, w). `initial` replaces the first unit noise, (B, 4, h, w)."""

    text: Text
    size: tuple[int, int]
    sampler: Sampler
    course: Course
    solver: Solver
    noise: Noise
    guidance: Guidance = Guidance()
    initial: Tensor | None = None


@dataclass(frozen=True, eq=False)
class TextToImage:
    """The parts of the checkpoint."""

    tokenizer: Tokenizer
    text_encoder: ClipText
    unet: UNet
    vae: AutoencoderKL
    sampler: Sampler
    runtime: Runtime = Runtime()

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the denoising network."""
        return next(self.unet.parameters()).dtype

    def __call__(self, job: TextToImageJob, watch: Watch = quiet) -> Tensor:
        """Latents (B, 4, h, w) in float32, scaled as the checkpoint's autoencoder scales them."""
        conditioning = _condition(job.text.positive)
        guided = None if job.text.negative is None else stack(_condition(job.text.negative), conditioning)
        shape = (len(job.text.positive.tokens), self.vae.config.latent_channels, *job.size)
        start = torch.empty(shape, dtype=self.dtype, device=self.runtime.device)
        unit = job.noise(start) if job.initial is None else job.initial.to(self.runtime.device)
        with self.runtime.hold(self.unet):
            denoise = Denoiser(self.unet, self.dtype, job.sampler.precondition(), conditioning, guided, job.guidance)
            seen = watch_steps(watch, len(job.course.ladder) - 1)
            x = sample(job.solver, denoise, unit.float() * job.course.start, job.course.ladder, job.noise, seen)
        return x * job.course.end


def generate(
    prompt: Any, *, model: str | Path, device: str = "auto", precision: str = "auto", offload: Offload = "none",
    watch: Watch = quiet, **options: Any,
) -> Result:  # fmt: skip
    """Make pictures from text with the Stable Diffusion checkpoint in a folder; `options` are `GenerateRequest`'s."""
    return load_text_to_image(model, device, precision, offload)(GenerateRequest(prompt, **options), watch)


def load_text_to_image(
    model: str | Path, device: str = "auto", precision: str = "auto", offload: Offload = "none"
) -> Callable[..., Result]:
    """Load a text-to-image checkpoint once for many requests."""
    place = pick_device(device)
    task = text_to_image_task(read_folder(model, dtype=pick_precision(precision, place)), Runtime(place, offload))

    def run(request: GenerateRequest, watch: Watch = quiet) -> Result:
        return _generate(task, request, str(model), watch)

    return run


def text_to_image_task(bundle: Bundle, runtime: Runtime) -> TextToImage:
    """A Stable Diffusion 1 or 2 text-to-image checkpoint from a folder's parts."""
    parts, kind = bundle.components, str(bundle.index.get("_class_name"))
    if kind != "StableDiffusionPipeline" or parts["unet"].config.in_channels != parts["vae"].config.latent_channels:
        raise Unsupported(f"{bundle.path}: holds a {kind}, expected StableDiffusionPipeline with a text-to-image UNet")
    sampler = schedule_config(parts["scheduler"])
    return TextToImage(parts["tokenizer"], parts["text_encoder"], parts["unet"], parts["vae"], sampler, runtime)


def _generate(task: TextToImage, request: GenerateRequest, name: str, watch: Watch) -> Result:
    options = filled(request, "generate")
    prompts = [request.prompt] if isinstance(request.prompt, str) else list(request.prompt)
    negatives = one_per(request.negative, len(prompts), "negative")
    scale, count = options["guidance"], request.count
    text = encode_text(
        task.tokenizer, task.text_encoder, task.runtime,
        [p for p in prompts for _ in range(count)],
        [n for n in negatives for _ in range(count)] if scale != 1 else None,
        "last_norm", request.long_prompt,
    )  # fmt: skip
    width, height = (512 if side is None else side for side in (request.width, request.height))
    size = tuple(-(-side // GRANULARITY) * GRANULARITY // task.vae.factor for side in (height, width))
    seeds = seeds_for(request.seed, len(prompts) * count)
    sampler = task.sampler.using(options["solver"])
    job = TextToImageJob(
        text, (size[0], size[1]), sampler, sampler.course(options["steps"]), SOLVERS[sampler.solver],
        from_seeds(seeds), Guidance(scale, request.rescale),
    )  # fmt: skip
    pictures = decode(task.vae, task(job, watch), task.runtime)[..., :height, :width]
    return Result(tuple(to_pil(Picture(one.cpu())) for one in pictures), tuple(seeds), name)


def _condition(text: Encoded) -> Conditioning:
    return Conditioning(text.tokens)
