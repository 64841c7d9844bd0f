"""`StableDiffusionPipeline`: text to pictures with SD1 and SD2 under diffusers' name and keywords."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from enlarger.checkpoint.folder import Bundle
from enlarger.diffusers.arguments import (
    ArgumentError,
    Generators,
    Prompt,
    as_list,
    batch_of,
    check_callback_steps,
    check_latents,
    check_output_type,
    check_prompts,
    negatives_for,
    noise_for,
    refuse,
)
from enlarger.diffusers.callbacks import Call, Interrupted, Reporter, every, on_step_end
from enlarger.diffusers.pipeline import Pipeline, output, warn_skipped_checker
from enlarger.diffusers.schedulers import Scheduler
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.sample import Solver
from enlarger.diffusion.sampler import Course, Sampler
from enlarger.diffusion.solvers import SOLVERS, ddim
from enlarger.errors import InputError, Unsupported
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.unet import UNet
from enlarger.tasks.parts import Text
from enlarger.tasks.text_to_image import TextToImage, TextToImageJob
from enlarger.text.encode import Encoded, encode
from enlarger.text.tokenize import Tokenizer

NOT_HERE = {
    "ip_adapter_image": "there are no IP adapters",
    "ip_adapter_image_embeds": "there are no IP adapters",
    "cross_attention_kwargs": "merge adapters into the weights first",
}


class StableDiffusionPipeline(Pipeline):
    """Text to pictures.

    There is no safety checker: those three parts are None. As in diffusers, a scheduler file from before
    `steps_offset` and `clip_sample` were settled is corrected (1 and False) when the pipeline is made.
    """

    PARTS: ClassVar[Mapping[str, type[Any]]] = {
        "vae": AutoencoderKL,
        "text_encoder": ClipText,
        "tokenizer": Tokenizer,
        "unet": UNet,
        "scheduler": Scheduler,
        "safety_checker": type(None),
        "feature_extractor": type(None),
        "image_encoder": type(None),
    }
    unet: UNet

    def __init__(
        self, vae: AutoencoderKL, text_encoder: ClipText, tokenizer: Tokenizer, unet: UNet, scheduler: Scheduler,
        safety_checker: None = None, feature_extractor: None = None, image_encoder: None = None,
        requires_safety_checker: bool = False,
    ) -> None:  # fmt: skip
        del requires_safety_checker  # only decides whether diffusers warns that there is none
        given = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet}
        absent = {"safety_checker": safety_checker, "feature_extractor": feature_extractor}
        super().__init__(given | absent | {"scheduler": _settled(scheduler), "image_encoder": image_encoder})
        if unet.config.in_channels != vae.config.latent_channels:
            raise InputError(
                f"the UNet takes {unet.config.in_channels} channels, expected {vae.config.latent_channels}: "
                "this is not a text-to-image checkpoint"
            )

    @classmethod
    def _from_bundle(cls, bundle: Bundle, given: Mapping[str, Any]) -> Self:
        warn_skipped_checker(bundle.index, given)
        return super()._from_bundle(bundle, given)

    def __call__(
        self,
        prompt: Prompt | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: Prompt | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: Any,
    ) -> Any:
        """Make pictures. `kwargs` are the older `callback` and `callback_steps`.

        `timesteps` and `sigmas` are falling lists that replace the scheduler's own; `sigmas` has one more than there
        are steps and mostly ends at 0. `eta` is DDIM's alone. Guidance at or below 1 runs the prompt alone. Arguments
        that cannot be raise ValueError.
        """
        refuse(
            {
                "ip_adapter_image": ip_adapter_image,
                "ip_adapter_image_embeds": ip_adapter_image_embeds,
                "cross_attention_kwargs": cross_attention_kwargs,
            },
            NOT_HERE,
        )
        check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        check_output_type(output_type)
        height, width = self._size(height, width)
        each = 1 if num_images_per_prompt is None else num_images_per_prompt
        count = batch_of(prompt, prompt_embeds) * each
        size = (height // self.vae.factor, width // self.vae.factor)
        check_latents(latents, (count, self.vae.config.latent_channels, *size))
        sampler = self.scheduler.sampler()
        course = _course(sampler, num_inference_steps, timesteps, sigmas)
        guided, noise = guidance_scale > 1, noise_for(generator, count)
        embeds = self.encode_prompt(
            prompt, self.device, each, guided, negative_prompt, prompt_embeds, negative_prompt_embeds,
            clip_skip=clip_skip,
        )  # fmt: skip
        calls = self._calls(callback_on_step_end, callback_on_step_end_tensor_inputs, embeds, kwargs)
        guidance = Guidance(guidance_scale, guidance_rescale) if guided else Guidance()
        job = TextToImageJob(_text(embeds), size, sampler, course, _solver(sampler, eta), noise, guidance, latents)
        images = self._package(self._sample(job, calls), str(output_type))
        return output(images, return_dict, (images, None))

    def encode_prompt(
        self,
        prompt: Prompt | None,
        device: Any,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
        negative_prompt: Prompt | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Features of the prompts and, for guidance, of the negative prompts, each repeated per picture.

        `clip_skip` acts on the prompts alone, as in diffusers.
        """
        refuse({"lora_scale": lora_scale}, {"lora_scale": "merge adapters into the weights first"})
        count = batch_of(prompt, prompt_embeds)
        if prompt_embeds is None:
            assert prompt is not None, "either a prompt or its embeddings"
            prompt_embeds = self._encode(as_list(prompt), clip_skip)
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            negative_prompt_embeds = self._encode(negatives_for(prompt, negative_prompt, count), None)
        negative = negative_prompt_embeds if do_classifier_free_guidance else None

        def repeated(embeds: Tensor) -> Tensor:
            return embeds.to(device, self.dtype).repeat_interleave(num_images_per_prompt, 0)

        return repeated(prompt_embeds), None if negative is None else repeated(negative)

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked, by `pipe._interrupt = True`, to stop and decode what there is."""
        return self._interrupt

    def _encode(self, texts: list[str], clip_skip: int | None) -> Tensor:
        skip = 0 if clip_skip is None else clip_skip
        with self._runtime.hold(self.text_encoder) as encoder:
            return encode(self.tokenizer, encoder, texts, layer="last_norm", clip_skip=skip).tokens

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width, the checkpoint's own if one is missing."""
        if not height or not width:
            stated = self._configs.get("unet", {}).get("sample_size")
            if stated is None:
                raise ArgumentError("`height` and `width` are missing, and parts do not state a size; give both")
            sides: tuple[int, ...] = (stated, stated) if isinstance(stated, int) else tuple(stated)
            height, width = (side * self.vae.factor for side in sides)
        if height % 8 or width % 8:
            raise ArgumentError(f"`height` and `width` have to be divisible by 8 but are {height} and {width}")
        return height, width

    def _calls(
        self, on_end: Callable[..., Any] | None, names: Sequence[str], embeds: tuple[Tensor, Tensor | None],
        older: Mapping[str, Any],
    ) -> list[Call]:  # fmt: skip
        unknown = sorted(set(older) - {"callback", "callback_steps"})
        if unknown:
            raise TypeError(f"StableDiffusionPipeline got unexpected arguments {', '.join(unknown)}")
        steps = older.get("callback_steps")
        if steps is not None:
            check_callback_steps(steps)
        prompt, negative = embeds
        seen = prompt if negative is None else torch.cat([negative, prompt])
        tensors = {"prompt_embeds": seen, "negative_prompt_embeds": negative}
        calls = [] if on_end is None else [on_step_end(self, on_end, names, tensors)]
        callback = older.get("callback")
        return calls if callback is None else [*calls, every(callback, 1 if steps is None else steps)]

    def _sample(self, job: TextToImageJob, calls: Sequence[Call]) -> Tensor:
        self._interrupt = False
        task = TextToImage(self.tokenizer, self.text_encoder, self.unet, self.vae, job.sampler, self._runtime)
        with self.progress_bar(total=len(job.course.ladder) - 1) as bar:
            reporter = Reporter(job.sampler, job.course, self.dtype, bar, calls, lambda: self._interrupt)
            try:
                return task(job, reporter.watch())
            except Interrupted as stop:
                return stop.latents


def _settled(scheduler: Scheduler) -> Scheduler:
    """The scheduler with what all Stable Diffusion checkpoints were trained for."""
    if not isinstance(scheduler, Scheduler):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        return scheduler  # refused with its name when it is set
    changes: dict[str, Any] = {}
    if scheduler.config.get("steps_offset", 1) != 1:
        changes["steps_offset"] = 1
    if scheduler.config.get("clip_sample"):
        changes["clip_sample"] = False
    if changes:
        warnings.warn(f"{scheduler}: outdated for Stable Diffusion; uses {changes}", stacklevel=3)
    return scheduler.changed(**changes) if changes else scheduler


def _course(
    sampler: Sampler, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None
) -> Course:  # fmt: skip
    """The scheduler's ladder, or one of the caller's own."""
    if timesteps is not None and sigmas is not None:
        raise ArgumentError("found both `timesteps` and `sigmas`, expected at most one of them")
    if timesteps is None and sigmas is None:
        return sampler.course(steps)
    if sigmas is not None:
        return sampler.along(torch.tensor(sigmas, dtype=torch.float64))
    levels = sampler.schedule.sigma(torch.tensor(timesteps, dtype=torch.float64))
    return sampler.along(torch.cat([levels, torch.tensor([sampler.last], dtype=torch.float64)]))


def _solver(sampler: Sampler, eta: float) -> Solver:
    if eta and sampler.solver != "ddim":
        raise Unsupported(
            f"eta is {eta:g}, but only DDIMScheduler has it; EulerAncestralDiscreteScheduler adds noise too"
        )
    return partial(ddim, eta=eta) if eta else SOLVERS[sampler.solver]


def _text(embeds: tuple[Tensor, Tensor | None]) -> Text:
    first, second = (None if e is None else Encoded(e, e[:, 0], torch.ones(e.shape[:2]).bool()) for e in embeds)
    assert first is not None
    return Text(first, second)
