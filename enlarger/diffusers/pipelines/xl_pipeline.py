"""What the SDXL pipelines share: two text encoders or one, sizes and scores beside the prompt, and the run."""

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.types import Device

from enlarger.checkpoint.adapters.lora import LORA_COMPONENTS
from enlarger.diffusers.call.arguments import (
    ArgumentError,
    Prompt,
    as_list,
    batch_size_of,
    check_pooled,
    check_prompts,
    images_per_prompt,
    negative_prompts_for,
)
from enlarger.diffusers.call.live_values import NetworkInputs, Remake, tokens_replaced
from enlarger.diffusers.call.run import Listed, Run, between, listed
from enlarger.diffusers.loaders.adapter_files import Layers, Metadata, save_lora
from enlarger.diffusers.pipelines.image_pipeline import ImagePipeline, check_strength
from enlarger.diffusers.pipelines.pipeline_output import make_output
from enlarger.diffusers.pipelines.text_pipeline import PooledEmbeds, text_features
from enlarger.diffusers.schedulers import Scheduler
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.sampler import SigmaSchedule
from enlarger.errors import InputError
from enlarger.image.watermark import add_watermark, can_hold
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.unet import UNet
from enlarger.tasks.latent_diffusion.conditioning import (
    GuidedConditioning,
    MicroConditioning,
    Size,
    condition_on_tokens_and_sizes,
    replace_in_vector,
)
from enlarger.text.encode import encode_prompts_xl
from enlarger.text.tokenize import Tokenizer

SizePair = tuple[int, int]
DEFAULT_AESTHETIC_SCORES = (6.0, 2.5)  # diffusers' aesthetic scores of the prompt and the negative prompt


@dataclass(frozen=True, eq=False)
class PromptArguments:
    """What a call says of its prompts."""

    prompt: Prompt | None
    prompt_2: Prompt | None
    negative: Prompt | None
    negative_2: Prompt | None
    embeds: Tensor | None
    negative_embeds: Tensor | None
    pooled: Tensor | None
    negative_pooled: Tensor | None
    num_images_per_prompt: int | None
    clip_skip: int | None

    @property
    def images_per_prompt(self) -> int:
        """Pictures per prompt."""
        return images_per_prompt(self.num_images_per_prompt)

    def batch_size(self) -> int:
        """How many pictures there will be; ArgumentError for prompts that cannot be."""
        check_prompts(self.prompt, self.negative, self.embeds, self.negative_embeds)
        for which, text, embeds in (
            ("", self.prompt_2, self.embeds),
            ("negative_", self.negative_2, self.negative_embeds),
        ):
            if text is not None and not isinstance(text, str | list):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
                raise ArgumentError(f"`{which}prompt_2` has to be of type `str` or `list` but is {type(text)}")
            if text is not None and embeds is not None:
                raise ArgumentError(f"found both `{which}prompt_2` and `{which}prompt_embeds`, expected one of them")
        if self.embeds is not None:
            check_pooled("", self.embeds, self.pooled)
        if self.negative_embeds is not None:
            check_pooled("negative_", self.negative_embeds, self.negative_pooled)
        return batch_size_of(self.prompt, self.embeds) * self.images_per_prompt


@dataclass(frozen=True)
class SizeArguments:
    """The sizes and scores of a call; None is the size of the result."""

    original: SizePair | None
    crop: SizePair
    target: SizePair | None
    negative_original: SizePair | None
    negative_crop: SizePair
    negative_target: SizePair | None
    scores: tuple[float, float] = DEFAULT_AESTHETIC_SCORES

    def for_text_to_image(self, size: Size) -> tuple[MicroConditioning, MicroConditioning]:
        """Text-to-image: sizes of the negative prompt are its own only if both of them are given, as in diffusers."""
        own = MicroConditioning(_value_or(self.original, size), self.crop, _value_or(self.target, size))
        if self.negative_original is not None and self.negative_target is not None:
            return own, MicroConditioning(self.negative_original, self.negative_crop, self.negative_target)
        given = {"negative_original_size": self.negative_original, "negative_target_size": self.negative_target}
        lone = [name for name, value in given.items() if value is not None]
        lone += ["negative_crops_coords_top_left"] if tuple(self.negative_crop) != (0, 0) else []
        if lone:
            _warn_ignored(f"{', '.join(lone)} is not used without both negative_original_size and negative_target_size")
        return own, own

    def for_image_to_image(self, size: Size, scored: bool) -> tuple[MicroConditioning, MicroConditioning]:
        """From a picture: each size of the negative prompt stands for itself, but without scores its crop is the
        prompt's, as in diffusers."""
        original, target = _value_or(self.original, size), _value_or(self.target, size)
        negative = _value_or(self.negative_original, original), _value_or(self.negative_target, target)
        if scored:
            return (
                MicroConditioning(original, self.crop, target, self.scores[0]),
                MicroConditioning(negative[0], self.negative_crop, negative[1], self.scores[1]),
            )
        if tuple(self.negative_crop) not in ((0, 0), tuple(self.crop)):
            _warn_ignored("negative_crops_coords_top_left is not used by a pipeline without aesthetic scores")
        if self.scores != DEFAULT_AESTHETIC_SCORES:
            _warn_ignored("aesthetic scores are not used: the pipeline's requires_aesthetics_score is False")
        return MicroConditioning(original, self.crop, target), MicroConditioning(negative[0], self.crop, negative[1])


class XLPipeline(ImagePipeline):
    """The base of the SDXL pipelines. Without the first text encoder it is the refiner's."""

    COMPONENT_TYPES: ClassVar[Mapping[str, type[object]]] = {
        "vae": AutoencoderKL,
        "text_encoder": ClipText,
        "text_encoder_2": ClipText,
        "tokenizer": Tokenizer,
        "tokenizer_2": Tokenizer,
        "unet": UNet,
        "scheduler": Scheduler,
        "image_encoder": type(None),
        "feature_extractor": type(None),
    }
    OPTIONAL_COMPONENTS: ClassVar[frozenset[str]] = frozenset(
        {"text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"}
    )
    CONFIG_KEYS: ClassVar[tuple[str, ...]] = ("force_zeros_for_empty_prompt", "add_watermarker")
    UPCAST: ClassVar[bool] = True
    _denoising_start: float | None = None
    _denoising_end: float | None = None
    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = ("latents", "prompt_embeds", "add_text_embeds", "add_time_ids")

    def _set_components(self, parts: Mapping[str, object], settings: Mapping[str, object] | None = None) -> None:
        kept = dict(settings or {})
        self._adds_watermark = bool(kept.pop("add_watermarker", None))
        super()._set_components(parts, kept)
        if self.unet is not None and self._unet.config.time_id_channels is None:
            raise InputError("the UNet takes no sizes, expected one of SDXL with addition_embed_type 'text_time'")

    @classmethod
    def save_lora_weights(  # pyright: ignore[reportIncompatibleMethodOverride] - diffusers' own signature
        cls, save_directory: str | Path, unet_lora_layers: Layers = None, text_encoder_lora_layers: Layers = None,
        text_encoder_2_lora_layers: Layers = None, is_main_process: bool = True, weight_name: str | None = None,
        save_function: object = None, safe_serialization: bool = True, unet_lora_adapter_metadata: Metadata = None,
        text_encoder_lora_adapter_metadata: Metadata = None, text_encoder_2_lora_adapter_metadata: Metadata = None,
    ) -> None:  # fmt: skip
        """Write the layers of a LoRA, as `load_lora_weights` reads them."""
        layers = (unet_lora_layers, text_encoder_lora_layers, text_encoder_2_lora_layers)
        stated = (unet_lora_adapter_metadata, text_encoder_lora_adapter_metadata, text_encoder_2_lora_adapter_metadata)
        named = dict(zip(LORA_COMPONENTS, layers, strict=True))
        noted = dict(zip(LORA_COMPONENTS, stated, strict=True))
        if is_main_process:
            save_lora(Path(save_directory), weight_name, named, noted, safe_serialization and save_function is None)

    def encode_prompt(  # pyright: ignore[reportIncompatibleMethodOverride] - diffusers' own signature
        self,
        prompt: Prompt | None,
        prompt_2: Prompt | None = None,
        device: Device = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: Prompt | None = None,
        negative_prompt_2: Prompt | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> PooledEmbeds:
        """(prompt, negative prompt, pooled prompt, pooled negative prompt) as features, each repeated per picture.

        No negative prompt is zeros where the checkpoint's `force_zeros_for_empty_prompt` says so; an empty one is
        encoded. An empty `prompt_2` means `prompt`. `clip_skip` acts on the prompts alone, as in diffusers.
        """
        if lora_scale is not None:
            with self._scaled({"scale": lora_scale}):
                return self.encode_prompt(
                    prompt, prompt_2, device, num_images_per_prompt, do_classifier_free_guidance, negative_prompt,
                    negative_prompt_2, prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds,
                    negative_pooled_prompt_embeds, None, clip_skip,
                )  # fmt: skip
        if prompt_embeds is None:
            assert prompt is not None, "either a prompt or its embeddings"
            texts = as_list(prompt)
            prompt_embeds, made = self._encode_pair(texts, as_list(prompt_2) if prompt_2 else texts, clip_skip)
            pooled_prompt_embeds = made if pooled_prompt_embeds is None else pooled_prompt_embeds
        assert pooled_prompt_embeds is not None, "pooled features come with the others"
        negative, negative_pooled = negative_prompt_embeds, negative_pooled_prompt_embeds
        if do_classifier_free_guidance and negative is None:
            if negative_prompt is None and self._settings["force_zeros_for_empty_prompt"]:
                if negative_prompt_2 is not None:
                    _warn_ignored("negative_prompt_2 is not used without negative_prompt, which is zeros; give both")
                negative, made = torch.zeros_like(prompt_embeds), torch.zeros_like(pooled_prompt_embeds)
            else:
                negative, made = self._encode_negative(negative_prompt, negative_prompt_2, len(prompt_embeds))
            negative_pooled = made if negative_pooled is None else negative_pooled
        place = self.device if device is None else device

        def repeated(embeds: Tensor) -> Tensor:
            return embeds.to(place, self.dtype).repeat_interleave(num_images_per_prompt, 0)

        positive, pooled = repeated(prompt_embeds), repeated(pooled_prompt_embeds)
        if not do_classifier_free_guidance or negative is None or negative_pooled is None:
            return positive, None, pooled, None
        return positive, repeated(negative), pooled, repeated(negative_pooled)

    def _encode_negative(self, negative: Prompt | None, second: Prompt | None, count: int) -> tuple[Tensor, Tensor]:
        texts = negative_prompts_for(None, negative, count)
        return self._encode_pair(texts, negative_prompts_for(None, second, count) if second else texts, None)

    def _encode_pair(self, texts: list[str], second: list[str], clip_skip: int | None) -> tuple[Tensor, Tensor]:
        """Features of texts for the first encoder and for the second; a single encoder reads the first ones."""
        found = [
            (self._native_or_none(name.replace("text_encoder", "tokenizer")), self._native(name))
            for name in ("text_encoder", "text_encoder_2")
            if getattr(self, name) is not None
        ]
        if not found or any(tokenizer is None for tokenizer, _ in found):
            raise ArgumentError(
                "the pipeline has no text encoder with a tokenizer; give prompt_embeds and pooled_prompt_embeds, and "
                "those of the negative prompt"
            )
        both = [texts, second] if len(found) == 2 else [texts]
        if len(found) == 1 and second != texts:
            _warn_ignored("prompt_2 is not used: this pipeline has one text encoder, which reads the prompt")
        tokenizers, encoders = zip(*found, strict=True)
        with ExitStack() as held:
            for encoder in encoders:
                held.enter_context(self._runtime.hold(encoder))
            made = encode_prompts_xl(tokenizers, encoders, both, clip_skip=0 if clip_skip is None else clip_skip)
        return made.tokens, made.pooled

    def _condition(
        self, words: PromptArguments, guidance: Guidance, sizes: tuple[MicroConditioning, MicroConditioning]
    ) -> tuple[GuidedConditioning, dict[str, Tensor]]:
        """What the network is told, and the tensors that callbacks may see of that."""
        guided, (row, negative_row) = guidance.scale != 1, (one.time_ids() for one in sizes)
        embeds = self.encode_prompt(
            words.prompt, words.prompt_2, self.device, words.images_per_prompt, guided, words.negative,
            words.negative_2, words.embeds, words.negative_embeds, words.pooled, words.negative_pooled,
            clip_skip=words.clip_skip,
        )  # fmt: skip
        self._check_vector_width(row.shape[1], embeds[2].shape[1])
        tokens, negative, pooled, negative_pooled = embeds
        seen = {"prompt_embeds": tokens, "add_text_embeds": pooled, "add_time_ids": row.expand(len(tokens), -1)}
        if negative is not None and negative_pooled is not None:
            others = (negative, negative_pooled, negative_row.expand(len(tokens), -1))
            seen = {name: torch.cat([other, own]) for (name, own), other in zip(seen.items(), others, strict=True)}
        return condition_on_tokens_and_sizes(
            text_features(embeds), guidance, row, negative_row, self._unet.config.time_id_channels or 0
        ), seen

    def _replaced(self) -> Remake:
        """What callbacks replaced, told to the UNet."""
        channels = self._unet.config.time_id_channels or 0

        def remake(replaced: Mapping[str, Tensor], x: Tensor, inputs: NetworkInputs) -> tuple[Tensor, NetworkInputs]:
            pooled, sizes = replaced.get("add_text_embeds"), replaced.get("add_time_ids")
            if pooled is not None or sizes is not None:
                inputs = {**inputs, "vector": replace_in_vector(inputs["vector"], channels, pooled, sizes)}
            return tokens_replaced(replaced, x, inputs)

        return remake

    def _check_vector_width(self, numbers: int, pooled: int) -> None:
        """Refuse sizes and scores that the UNet was not made for, with advice (diffusers' is the wrong way round)."""
        config = self._unet.config
        channels, expected = config.time_id_channels or 0, config.vector_channels or 0
        found = numbers * channels + pooled
        if found == expected:
            return
        advice = "check the UNet's config and the projection of `text_encoder_2`"
        if abs(found - expected) == channels:
            wanted = found > expected
            advice = (
                f"this UNet was trained {'with' if wanted else 'without'} aesthetic scores: "
                f"`pipe.register_to_config(requires_aesthetics_score={wanted})`"
            )
            if "requires_aesthetics_score" not in self._settings:
                advice = "this is a refiner's UNet, read it with StableDiffusionXLImg2ImgPipeline"
        raise ArgumentError(
            f"Model expects an added time embedding vector of length {expected}, but a vector of {found} was created; "
            f"{advice}"
        )

    def _denoising_range(
        self, asked: Listed, strength: float, ends: tuple[float | None, float | None], eta: float
    ) -> Run:
        """The steps from a share of the training time, or else the last `strength` of them, to another share."""
        check_strength(strength)
        self._denoising_start, self._denoising_end = ends
        return between(listed(self.scheduler, asked, eta), *ends, strength)

    def _postprocess(self, latents: Tensor, output_type: str) -> Any:
        """The pictures, with SDXL's watermark where `add_watermarker` was said, as 8-bit values then."""
        if output_type == "latent" or not self._adds_watermark:
            return super()._postprocess(latents, output_type)
        made: list[Image.Image] = super()._postprocess(latents, "pil")
        marked = [add_watermark(one) if can_hold(one) else one for one in made]
        if output_type == "pil":
            return marked
        values = np.stack([np.asarray(one, np.float32) / 255 for one in marked])
        return values if output_type == "np" else torch.from_numpy(values).permute(0, 3, 1, 2).to(self.dtype)

    @property
    def denoising_start(self) -> float | None:
        """That of the last call."""
        return self._denoising_start

    @property
    def denoising_end(self) -> float | None:
        """That of the last call."""
        return self._denoising_end

    def _finish_output(self, latents: Tensor, output_type: str, return_dict: bool) -> Any:
        images = self._postprocess(latents, output_type)
        return make_output(images, return_dict, (images,))


class XLImagePipeline(XLPipeline):
    """The base of those that start from pictures: base model or refiner."""

    CONFIG_KEYS: ClassVar[tuple[str, ...]] = (*XLPipeline.CONFIG_KEYS, "requires_aesthetics_score")
    CHECKPOINT_KIND: ClassVar[str] = "a fitting"

    def __init__(
        self, vae: AutoencoderKL, text_encoder: ClipText | None, text_encoder_2: ClipText | None,
        tokenizer: Tokenizer | None, tokenizer_2: Tokenizer | None, unet: UNet, scheduler: Scheduler,
        image_encoder: None = None, feature_extractor: None = None, requires_aesthetics_score: bool = False,
        force_zeros_for_empty_prompt: bool = True, add_watermarker: bool | None = None,
    ) -> None:  # fmt: skip
        given = {"vae": vae, "text_encoder": text_encoder, "text_encoder_2": text_encoder_2, "tokenizer": tokenizer}
        given |= {"tokenizer_2": tokenizer_2, "unet": unet, "scheduler": scheduler}
        given |= {"image_encoder": image_encoder, "feature_extractor": feature_extractor}
        settings = {"requires_aesthetics_score": requires_aesthetics_score}
        settings["force_zeros_for_empty_prompt"] = force_zeros_for_empty_prompt
        self._set_components(given, settings | {"add_watermarker": add_watermarker})

    def _get_add_time_ids(
        self, original_size: SizePair, crops_coords_top_left: SizePair, target_size: SizePair, aesthetic_score: float,
        negative_aesthetic_score: float, negative_original_size: SizePair, negative_crops_coords_top_left: SizePair,
        negative_target_size: SizePair, dtype: torch.dtype, text_encoder_projection_dim: int | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The sizes or scores of the prompt and of the negative prompt as the network takes them, (1, 5 or 6) each."""
        asked = SizeArguments(
            original_size, crops_coords_top_left, target_size, negative_original_size, negative_crops_coords_top_left,
            negative_target_size, (aesthetic_score, negative_aesthetic_score),
        )  # fmt: skip
        made = asked.for_image_to_image(target_size, bool(self._settings["requires_aesthetics_score"]))
        return made[0].time_ids().to(dtype), made[1].time_ids().to(dtype)


def handoff_scale(sigma_schedule: SigmaSchedule) -> float:
    """What turns latents that another pipeline left with noise in them into the first ones of a run."""
    return (float(sigma_schedule.sigmas[0]) ** 2 + 1) ** 0.5 if sigma_schedule.variance_preserving else 1.0


def _warn_ignored(text: str) -> None:
    """Say what a call gave in vain."""
    warnings.warn(text, UserWarning, stacklevel=5)


def _value_or(value: SizePair | None, other: SizePair) -> SizePair:
    return other if value is None else value
