"""What the pipelines with one text encoder share: prompts to features, sizes, callbacks, and the run itself."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.types import Device

from enlarger.checkpoint.components import PipelineComponents
from enlarger.diffusers.call.arguments import (
    ArgumentError,
    Prompt,
    as_list,
    batch_size_of,
    negative_prompts_for,
)
from enlarger.diffusers.call.callbacks import CallbackRunner, Interrupted, Listeners, listeners
from enlarger.diffusers.call.live_values import LiveGuidance, Redirected, Remake, tokens_replaced
from enlarger.diffusers.call.pictures import postprocess
from enlarger.diffusers.call.run import Run
from enlarger.diffusers.loaders.lora import LoraMethods
from enlarger.diffusers.models.foreign import with_extractor
from enlarger.diffusers.models.tokenizer import CLIPTokenizer
from enlarger.diffusers.pipelines.pipeline_output import PipelineOutput
from enlarger.diffusers.pipelines.pipeline_utils import Pipeline
from enlarger.diffusers.schedulers import Scheduler
from enlarger.diffusers.types import OnStepEnd
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.sample import OnStep
from enlarger.errors import InputError
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.unet import UNet
from enlarger.tasks.auxiliary.safety_checker import SafetyChecker, missing_checker_note
from enlarger.tasks.latent_diffusion.conditioning import (
    GuidedConditioning,
    GuidedText,
    condition_on_tokens,
    embed_guidance_scale,
)
from enlarger.tasks.latent_diffusion.latent_diffusion import LatentDiffusion
from enlarger.text.encode import PromptEmbeds, encode_prompts
from enlarger.text.tokenize import Tokenizer

log = logging.getLogger(__name__)
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

    COMPONENT_TYPES: ClassVar[Mapping[str, type[object]]] = {
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
    CONFIG_KEYS: ClassVar[tuple[str, ...]] = ("requires_safety_checker",)
    CHECKPOINT_KIND: ClassVar[str] = "a text-to-image"
    DISTILLABLE: ClassVar[bool] = True
    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = ("latents", "prompt_embeds", "negative_prompt_embeds")
    EXTRA_CHANNELS: ClassVar[tuple[int, ...]] = (0,)  # channels that the UNet may take beside the latents
    unet: Any

    def __init__(
        self, vae: AutoencoderKL, text_encoder: ClipText, tokenizer: Tokenizer, unet: UNet, scheduler: Scheduler,
        safety_checker: SafetyChecker | None = None, feature_extractor: None = None, image_encoder: None = None,
        requires_safety_checker: bool = False,
    ) -> None:  # fmt: skip
        given = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet}
        optional = {"safety_checker": safety_checker, "feature_extractor": feature_extractor}
        self._set_components(
            given | optional | {"scheduler": correct_scheduler_config(scheduler), "image_encoder": image_encoder},
            {"requires_safety_checker": requires_safety_checker},  # kept for diffusers, and for nothing here
        )

    def unload_ip_adapter(self) -> None:
        """There is none to unload."""

    def _set_components(self, parts: Mapping[str, object], settings: Mapping[str, object] | None = None) -> None:
        """Take the parts, if the UNet is one for this pipeline."""
        super().__init__(parts, settings)
        if self.unet is None or self.vae is None:
            return
        found, latents = self._unet.config.in_channels, self._vae.config.latent_channels
        if found not in {latents + extra for extra in self.EXTRA_CHANNELS}:
            known = " or ".join(str(latents + extra) for extra in self.EXTRA_CHANNELS)
            raise InputError(
                f"the UNet takes {found} channels, expected {known}: this is not {self.CHECKPOINT_KIND} checkpoint"
            )

    @classmethod
    def _components_to_load(cls, path: Path) -> list[str]:
        return [name for name in super()._components_to_load(path) if name != "safety_checker"]

    @classmethod
    def _vision_parts(
        cls, bundle: PipelineComponents, variant: str | None, given: Mapping[str, object]
    ) -> Mapping[str, object]:
        stated: Any = bundle.index.get("safety_checker") or (None, None)
        if "safety_checker" in cls.COMPONENT_TYPES and stated[1] is not None and "safety_checker" not in given:
            return {**given, "safety_checker": _load_safety_checker(bundle.path, variant)}
        return given

    def encode_prompt(
        self,
        prompt: Prompt | None,
        device: Device,
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
            with self._scaled({"scale": lora_scale}):
                return self.encode_prompt(
                    prompt, device, num_images_per_prompt, do_classifier_free_guidance, negative_prompt, prompt_embeds,
                    negative_prompt_embeds, clip_skip=clip_skip,
                )  # fmt: skip
        count = batch_size_of(prompt, prompt_embeds)
        if prompt_embeds is None:
            assert prompt is not None, "either a prompt or its embeddings"
            prompt_embeds = self._encode(as_list(prompt), clip_skip)
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            negative_prompt_embeds = self._encode(negative_prompts_for(prompt, negative_prompt, count), None)
        negative = negative_prompt_embeds if do_classifier_free_guidance else None

        def repeated(embeds: Tensor) -> Tensor:
            return embeds.to(device, self.dtype).repeat_interleave(num_images_per_prompt, 0)

        return repeated(prompt_embeds), None if negative is None else repeated(negative)

    def _encode(self, texts: list[str], clip_skip: int | None) -> Tensor:
        warn_of_cut(self.tokenizer, texts)
        skip = 0 if clip_skip is None else clip_skip
        with self._runtime.hold(self._text_encoder) as encoder:
            return encode_prompts(self._tokenizer, encoder, texts, layer="last_norm", clip_skip=skip).tokens

    def _size_or_default(self, height: int | None, width: int | None, latents: Tensor | None = None) -> tuple[int, int]:
        """Height and width; those of the latents, or else the checkpoint's own, if one is missing."""
        if height is None and width is None and latents is not None and latents.ndim == 4:
            height, width = (side * self._vae.downsample_factor for side in latents.shape[2:])
        if not height or not width:
            stated = sample_size(self.unet.config)
            if stated is None:
                raise ArgumentError("`height` and `width` are missing, and parts do not state a size; give both")
            sides: tuple[int, ...] = (stated, stated) if isinstance(stated, int) else tuple(stated)
            height, width = (side * self._vae.downsample_factor for side in sides)
        if height % 8 or width % 8:
            raise ArgumentError(f"`height` and `width` have to be divisible by 8 but are {height} and {width}")
        return int(height), int(width)

    def _prompt_callbacks(
        self,
        on_end: OnStepEnd | None,
        names: Sequence[str],
        embeds: tuple[Tensor, Tensor | None],
        older: Mapping[str, Any],
    ) -> Listeners:
        prompt, negative = embeds
        seen = prompt if negative is None else torch.cat([negative, prompt])
        return listeners(self, on_end, names, {"prompt_embeds": seen, "negative_prompt_embeds": negative}, older)

    def _distilled(self) -> dict[str, Tensor]:
        """What a network distilled with guidance is told besides."""
        channels = getattr(self._unet.config, "guidance_channels", None)
        if channels is None:
            return {}
        return {
            "guidance": embed_guidance_scale(self._guidance_scale, 1, channels).to(self._runtime.device, self.dtype)
        }

    def _guidance(self, scale: float, rescale: float = 0.0) -> Guidance:
        """Guidance that callbacks may change through `_guidance_scale`; at or below 1 the prompt runs alone."""
        self._guidance_scale, self._guidance_rescale = scale, rescale
        guided = self.do_classifier_free_guidance
        return LiveGuidance(scale, rescale, pipe=self) if guided else Guidance()

    def _make_output(self, latents: Tensor, output_type: str, return_dict: bool) -> Any:
        """The latents, or their pictures, blackened where the safety checker flags them."""
        checker: SafetyChecker | None = getattr(self, "safety_checker", None)
        if output_type == "latent" or checker is None:
            images, flags = self._postprocess(latents, output_type), None
        else:
            made = self._decode(latents)
            flags = self._flags(checker, made)
            if any(flags):
                warnings.warn(NSFW_WARNING, stacklevel=3)
            made[torch.tensor(flags)] = -1
            images = postprocess(made.to(self.dtype) if output_type == "pt" else made, output_type)
        return PipelineOutput(images, flags) if return_dict else (images, flags)

    def _flags(self, checker: SafetyChecker, pictures: Tensor) -> list[bool]:
        """Which of the pictures (B, 3, H, W) about -1..1 the safety checker flags."""
        extractor = getattr(self, "feature_extractor", None)
        return list(with_extractor(replace(checker, runtime=self._runtime), extractor)(pictures))

    def run_safety_checker(
        self, image: Any, device: Device = None, dtype: torch.dtype | None = None
    ) -> tuple[Any, list[bool] | None]:
        """Pictures with zeros in place of what is flagged, and the flags, which are None without a safety checker.

        `image` is a tensor (B, 3, H, W) about -1..1, or an array (B, H, W, 3) in 0..1.
        """
        checker: SafetyChecker | None = getattr(self, "safety_checker", None)
        if checker is None:
            return image, None
        is_tensor = isinstance(image, Tensor)
        looked = image if is_tensor else torch.from_numpy(image).permute(0, 3, 1, 2) * 2 - 1
        flags = self._flags(checker, looked.float().cpu())
        shown: Any = image.clone() if is_tensor else image.copy()
        shown[[i for i, flag in enumerate(flags) if flag]] = 0
        return shown, flags

    def _latent_diffusion(self, run: Run, heard: Listeners, remake: Remake = tokens_replaced) -> LatentDiffusion:
        """The networks of a run; what callbacks replace is condition_on_embeds to the UNet by `remake`."""
        upcast = self.UPCAST and self._vae.config.force_upcast
        unet: nn.Module = self._unet
        guidance_inputs = self._distilled()
        if heard.on_end is not None or guidance_inputs:
            unet = Redirected(unet, heard.replaced, remake, guidance_inputs)
        return LatentDiffusion(unet, self._vae, run.precondition(), self._runtime, upcast, self._tile_vae)

    def _run_task(self, run: Run, heard: Listeners, task: Callable[[OnStep], Tensor]) -> Tensor:
        """Run a task with the progress bar and the callbacks; one that a callback stopped gives the latents so far."""
        self._interrupt = False
        self._num_timesteps = len(run.timesteps)
        with self.progress_bar(total=run.steps) as bar:
            try:
                return task(CallbackRunner(run, self.dtype, bar, heard, lambda: self._interrupt).on_step())
            except Interrupted as stop:
                return stop.latents


def warn_of_cut(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> None:
    """Say which end of a prompt the text encoder does not see."""
    most = tokenizer.model_max_length - 2
    for text in texts:
        if cut := tokenizer.tokenize(text)[most:]:
            end = "".join(token.replace("</w>", " ") for token in cut).strip()
            log.warning("the prompt is cut at %s tokens, and the network is not told: %s", most, end)


def sample_size(config: Mapping[str, object]) -> Any:
    """The side of the latents that a checkpoint was trained on; repositories from before 0.9 understate it."""
    stated, version = config.get("sample_size"), str(config.get("_diffusers_version", "1"))
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    old = numbers < [0, 9]
    return 64 if old and isinstance(stated, int) and stated < 64 else stated


def condition_on_embeds(embeds: Embeds, guidance: Guidance) -> GuidedConditioning:
    """What the network is condition_on_embeds by features that were made or given."""
    first, second = (None if e is None else PromptEmbeds(e, e[:, 0], torch.ones(e.shape[:2]).bool()) for e in embeds)
    assert first is not None
    return condition_on_tokens(GuidedText(first, second), guidance)


def text_features(embeds: PooledEmbeds) -> GuidedText:
    """Features that were made or given, with pooled ones: (prompt, negative prompt, and those of each pooled)."""
    tokens, negative, pooled, negative_pooled = embeds
    without = None if negative is None or negative_pooled is None else _encoded(negative, negative_pooled)
    return GuidedText(_encoded(tokens, pooled), without)


def _encoded(tokens: Tensor, pooled: Tensor) -> PromptEmbeds:
    return PromptEmbeds(tokens, pooled, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))


def _load_safety_checker(path: Path, variant: str | None) -> SafetyChecker | None:
    """The folder's safety checker, or None and a line that says why not."""
    note = missing_checker_note(path)
    if note is not None:
        warnings.warn(f"{note}; safety_checker=None silences this", stacklevel=5)
        return None
    return SafetyChecker.from_folder(path, variant=variant)


def correct_scheduler_config(scheduler: Scheduler) -> Scheduler:
    """The scheduler with what all Stable Diffusion checkpoints were trained for."""
    if not isinstance(scheduler, Scheduler):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        return scheduler  # refused with its name when it is set
    changes = dict[str, object]()
    if scheduler.config.get("steps_offset", 1) != 1:
        changes["steps_offset"] = 1
    if scheduler.config.get("clip_sample"):
        changes["clip_sample"] = False
    if changes:
        warnings.warn(f"{scheduler}: outdated for Stable Diffusion; uses {changes}", stacklevel=3)
    return scheduler.with_config(**changes) if changes else scheduler
