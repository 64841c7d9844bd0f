"""What the pipelines with one text encoder share: prompts to features, sizes, callbacks, and the run itself."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from enlarger.checkpoint.components import PipelineComponents
from enlarger.diffusers.arguments import (
    ArgumentError,
    Prompt,
    as_list,
    batch_size_of,
    check_callback_steps,
    negative_prompts_for,
)
from enlarger.diffusers.callbacks import CallbackRunner, Interrupted, StepCallback, every_n_steps, on_step_end
from enlarger.diffusers.image_processor import postprocess
from enlarger.diffusers.lora import LoraMethods
from enlarger.diffusers.output import PipelineOutput
from enlarger.diffusers.pipeline import Pipeline
from enlarger.diffusers.schedulers import Scheduler
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.sample import OnStep
from enlarger.diffusion.sampler import Sampler, SigmaSchedule
from enlarger.errors import InputError
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.unet import UNet
from enlarger.tasks.auxiliary.safety_checker import SafetyChecker, missing_checker_note
from enlarger.tasks.conditioning import condition_on_tokens
from enlarger.tasks.latent_diffusion import LatentDiffusion
from enlarger.tasks.result import GuidedText
from enlarger.tasks.sampling import GuidedConditioning
from enlarger.text.encode import PromptEmbeds, encode_prompts
from enlarger.text.tokenize import Tokenizer

Embeds = tuple[Tensor, Tensor | None]
PooledEmbeds = tuple[Tensor, Tensor | None, Tensor, Tensor | None]

UNSUPPORTED_ADVICE = {
    "ip_adapter_image": "there are no IP adapters",
    "ip_adapter_image_embeds": "there are no IP adapters",
}
NSFW_WARNING = "the safety checker flagged a picture, which is black now; try another prompt or seed"


class TextPipeline(LoraMethods, Pipeline):
    """The base of the Stable Diffusion 1 and 2 pipelines.

    A folder's safety checker is read where transformers is installed, and blackens what it flags as diffusers' does;
    `feature_extractor`, a part of it here, is None.
    """

    COMPONENT_TYPES: ClassVar[Mapping[str, type[Any]]] = {
        "vae": AutoencoderKL,
        "text_encoder": ClipText,
        "tokenizer": Tokenizer,
        "unet": UNet,
        "scheduler": Scheduler,
        "safety_checker": SafetyChecker,
        "feature_extractor": type(None),
        "image_encoder": type(None),
    }
    OPTIONAL_COMPONENTS: ClassVar[frozenset[str]] = frozenset({"safety_checker"})
    CHECKPOINT_KIND: ClassVar[str] = "a text-to-image"
    EXTRA_CHANNELS: ClassVar[tuple[int, ...]] = (0,)  # channels that the UNet may take beside the latents
    unet: UNet

    def __init__(
        self, vae: AutoencoderKL, text_encoder: ClipText, tokenizer: Tokenizer, unet: UNet, scheduler: Scheduler,
        safety_checker: SafetyChecker | None = None, feature_extractor: None = None, image_encoder: None = None,
        requires_safety_checker: bool = False,
    ) -> None:  # fmt: skip
        del requires_safety_checker  # only decides whether diffusers warns that there is none
        components = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet}
        optional = {"safety_checker": safety_checker, "feature_extractor": feature_extractor}
        self._set_components(
            components | optional | {"scheduler": correct_scheduler_config(scheduler), "image_encoder": image_encoder}
        )

    def _set_components(self, components: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> None:
        """Take the parts, if the UNet is one for this pipeline."""
        super().__init__(components, settings)
        in_channels, latent_channels = self.unet.config.in_channels, self.vae.config.latent_channels
        if in_channels not in {latent_channels + extra for extra in self.EXTRA_CHANNELS}:
            expected = " or ".join(str(latent_channels + extra) for extra in self.EXTRA_CHANNELS)
            raise InputError(
                f"the UNet takes {in_channels} channels, expected {expected}: this is not {self.CHECKPOINT_KIND} "
                "checkpoint"
            )

    @classmethod
    def _components_to_load(cls, path: Path) -> list[str]:
        return [name for name in super()._components_to_load(path) if name != "safety_checker"]

    @classmethod
    def _from_bundle(cls, bundle: PipelineComponents, overrides: Mapping[str, Any]) -> Self:
        entry: Any = bundle.index.get("safety_checker") or (None, None)
        if "safety_checker" in cls.COMPONENT_TYPES and entry[1] is not None and "safety_checker" not in overrides:
            overrides = {**overrides, "safety_checker": _load_safety_checker(bundle.path)}
        return super()._from_bundle(bundle, overrides)

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
        if lora_scale is not None:
            return self._scaled({"scale": lora_scale}).encode_prompt(
                prompt, device, num_images_per_prompt, do_classifier_free_guidance, negative_prompt, prompt_embeds,
                negative_prompt_embeds, clip_skip=clip_skip,
            )  # fmt: skip
        batch_size = batch_size_of(prompt, prompt_embeds)
        if prompt_embeds is None:
            assert prompt is not None, "either a prompt or its embeddings"
            prompt_embeds = self._encode(as_list(prompt), clip_skip)
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            negative_prompt_embeds = self._encode(negative_prompts_for(prompt, negative_prompt, batch_size), None)
        negative = negative_prompt_embeds if do_classifier_free_guidance else None

        def repeat(embeds: Tensor) -> Tensor:
            return embeds.to(device, self.dtype).repeat_interleave(num_images_per_prompt, 0)

        return repeat(prompt_embeds), None if negative is None else repeat(negative)

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked, by `pipe._interrupt = True`, to stop and decode what there is."""
        return self._interrupt

    def _encode(self, texts: list[str], clip_skip: int | None) -> Tensor:
        skip = 0 if clip_skip is None else clip_skip
        with self._runtime.hold(self.text_encoder) as encoder:
            return encode_prompts(self.tokenizer, encoder, texts, layer="last_norm", clip_skip=skip).tokens

    def _size_or_default(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width, the checkpoint's own if one is missing."""
        if not height or not width:
            sample_size = self._configs.get("unet", {}).get("sample_size")
            if sample_size is None:
                raise ArgumentError("`height` and `width` are missing, and parts do not state a size; give both")
            sides: tuple[int, ...] = (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)
            height, width = (side * self.vae.downsample_factor for side in sides)
        if height % 8 or width % 8:
            raise ArgumentError(f"`height` and `width` have to be divisible by 8 but are {height} and {width}")
        return height, width

    def _prompt_callbacks(
        self, on_end: Callable[..., Any] | None, tensor_inputs: Sequence[str], embeds: tuple[Tensor, Tensor | None],
        legacy: Mapping[str, Any],
    ) -> list[StepCallback]:  # fmt: skip
        prompt, negative = embeds
        prompt_embeds = prompt if negative is None else torch.cat([negative, prompt])
        return self._step_callbacks(
            on_end, tensor_inputs, {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative}, legacy
        )

    def _step_callbacks(
        self,
        on_end: Callable[..., Any] | None,
        tensor_inputs: Sequence[str],
        tensors: dict[str, Any],
        legacy: Mapping[str, Any],
    ) -> list[StepCallback]:
        """The callbacks of a call, the new one, which may see `tensors`, and the older one."""
        unknown = sorted(set(legacy) - {"callback", "callback_steps"})
        if unknown:
            raise TypeError(f"{type(self).__name__} got unexpected arguments {', '.join(unknown)}")
        steps = legacy.get("callback_steps")
        if steps is not None:
            check_callback_steps(steps)
        callbacks = [] if on_end is None else [on_step_end(self, on_end, tensor_inputs, tensors)]
        callback = legacy.get("callback")
        return callbacks if callback is None else [*callbacks, every_n_steps(callback, 1 if steps is None else steps)]

    def _make_output(self, latents: Tensor, output_type: str, return_dict: bool) -> Any:
        """The latents, or their pictures, blackened where the safety checker flags them."""
        checker: SafetyChecker | None = getattr(self, "safety_checker", None)
        if output_type == "latent" or checker is None:
            images, flags = self._postprocess(latents, output_type), None
        else:
            decoded = self._decode(latents)
            flags = list(replace(checker, runtime=self._runtime)(decoded))
            if any(flags):
                warnings.warn(NSFW_WARNING, stacklevel=3)
            decoded[torch.tensor(flags)] = -1
            images = postprocess(decoded.to(self.dtype) if output_type == "pt" else decoded, output_type)
        return PipelineOutput(images, flags) if return_dict else (images, flags)

    def _latent_diffusion(self, sampler: Sampler, sigma_schedule: SigmaSchedule | None = None) -> LatentDiffusion:
        upcast = self.UPCAST and self.vae.config.force_upcast
        return LatentDiffusion(self.unet, self.vae, sampler.precondition(sigma_schedule), self._runtime, upcast)

    def _run_task(
        self,
        sampler: Sampler,
        sigma_schedule: SigmaSchedule,
        callbacks: Sequence[StepCallback],
        task: Callable[[OnStep], Tensor],
    ) -> Tensor:
        """Run a task with the progress bar and the callbacks; one that a callback stopped gives the latents so far."""
        self._interrupt = False
        with self.progress_bar(total=sigma_schedule.steps) as bar:
            callback_runner = CallbackRunner(
                sampler, sigma_schedule, self.dtype, bar, callbacks, lambda: self._interrupt
            )
            try:
                return task(callback_runner.on_step())
            except Interrupted as stop:
                return stop.latents


def condition_on_embeds(embeds: Embeds, guidance: Guidance) -> GuidedConditioning:
    """What the network is told by features that were made or given."""
    positive, negative = (
        None if e is None else PromptEmbeds(e, e[:, 0], torch.ones(e.shape[:2]).bool()) for e in embeds
    )
    assert positive is not None
    return condition_on_tokens(GuidedText(positive, negative), guidance)


def text_features(embeds: PooledEmbeds) -> GuidedText:
    """Features that were made or given, with pooled ones: (prompt, negative prompt, and those of each pooled)."""
    positive, negative, pooled, negative_pooled = embeds
    negative_features = None if negative is None or negative_pooled is None else _encoded(negative, negative_pooled)
    return GuidedText(_encoded(positive, pooled), negative_features)


def _encoded(tokens: Tensor, pooled: Tensor) -> PromptEmbeds:
    return PromptEmbeds(tokens, pooled, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))


def _load_safety_checker(path: Path) -> SafetyChecker | None:
    """The folder's safety checker, or None and a line that says why not."""
    note = missing_checker_note(path)
    if note is not None:
        warnings.warn(f"{note}; safety_checker=None silences this", stacklevel=5)
        return None
    return SafetyChecker.from_folder(path)


def correct_scheduler_config(scheduler: Scheduler) -> Scheduler:
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
    return scheduler.with_config(**changes) if changes else scheduler
