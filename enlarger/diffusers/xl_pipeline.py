"""What the SDXL pipelines share: two text encoders or one, sizes and scores beside the prompt, and the run."""

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from enlarger.diffusers.arguments import (
    ArgumentError,
    Prompt,
    as_list,
    batch_of,
    check_pooled,
    check_prompts,
    negatives_for,
)
from enlarger.diffusers.image_pipeline import ImagePipeline, check_strength
from enlarger.diffusers.live import Remake, Told as Telling, tokens_replaced
from enlarger.diffusers.pipeline import output
from enlarger.diffusers.running import Listed, Run, between, listed
from enlarger.diffusers.schedulers import Scheduler
from enlarger.diffusers.text_pipeline import PooledEmbeds, text_of
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.sampler import Course
from enlarger.errors import InputError, Unsupported
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.unet import UNet
from enlarger.tasks.denoise import Told
from enlarger.tasks.told import Size, Sizes, told_sizes, vector_replaced
from enlarger.text.pair import encode_pair
from enlarger.text.tokenize import Tokenizer

Pair = tuple[int, int]
SCORES = (6.0, 2.5)  # diffusers' aesthetic scores of the prompt and the negative prompt


@dataclass(frozen=True, eq=False)
class Words:
    """What a call says of its prompts."""

    prompt: Prompt | None
    prompt_2: Prompt | None
    negative: Prompt | None
    negative_2: Prompt | None
    embeds: Tensor | None
    negative_embeds: Tensor | None
    pooled: Tensor | None
    negative_pooled: Tensor | None
    per_prompt: int | None
    clip_skip: int | None

    @property
    def each(self) -> int:
        """Pictures per prompt."""
        return 1 if self.per_prompt is None else self.per_prompt

    def count(self) -> int:
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
        return batch_of(self.prompt, self.embeds) * self.each


@dataclass(frozen=True)
class Stated:
    """The sizes and scores of a call; None is the size of the result."""

    original: Pair | None
    crop: Pair
    target: Pair | None
    negative_original: Pair | None
    negative_crop: Pair
    negative_target: Pair | None
    scores: tuple[float, float] = SCORES

    def whole(self, size: Size) -> tuple[Sizes, Sizes]:
        """Text-to-image: sizes of the negative prompt are its own only if both of them are given, as in diffusers."""
        own = Sizes(_given(self.original, size), self.crop, _given(self.target, size))
        if self.negative_original is not None and self.negative_target is not None:
            return own, Sizes(self.negative_original, self.negative_crop, self.negative_target)
        given = {"negative_original_size": self.negative_original, "negative_target_size": self.negative_target}
        lone = [name for name, value in given.items() if value is not None]
        lone += ["negative_crops_coords_top_left"] if tuple(self.negative_crop) != (0, 0) else []
        if lone:
            _note(f"{', '.join(lone)} is not used without both negative_original_size and negative_target_size")
        return own, own

    def parted(self, size: Size, scored: bool) -> tuple[Sizes, Sizes]:
        """From a picture: each size of the negative prompt stands for itself, but without scores its crop is the
        prompt's, as in diffusers."""
        original, target = _given(self.original, size), _given(self.target, size)
        negative = _given(self.negative_original, original), _given(self.negative_target, target)
        if scored:
            return (
                Sizes(original, self.crop, target, self.scores[0]),
                Sizes(negative[0], self.negative_crop, negative[1], self.scores[1]),
            )
        if tuple(self.negative_crop) not in ((0, 0), tuple(self.crop)):
            _note("negative_crops_coords_top_left is not used by a pipeline without aesthetic scores")
        if self.scores != SCORES:
            _note("aesthetic scores are not used: the pipeline's requires_aesthetics_score is False")
        return Sizes(original, self.crop, target), Sizes(negative[0], self.crop, negative[1])


class XLPipeline(ImagePipeline):
    """The base of the SDXL pipelines. Without the first text encoder it is the refiner's."""

    PARTS: ClassVar[Mapping[str, type[Any]]] = {
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
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"})
    SETTINGS: ClassVar[tuple[str, ...]] = ("force_zeros_for_empty_prompt", "add_watermarker")
    UPCAST: ClassVar[bool] = True

    def _hold(self, parts: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> None:
        kept = dict(settings or {})
        if kept.pop("add_watermarker", None):
            raise Unsupported(
                "add_watermarker=True is not available: the watermark needs a package of its own and changes every "
                "picture; leave it out, and mark the finished pictures if that is wanted"
            )
        super()._hold(parts, kept)
        if self.unet.config.scalar_channels is None:
            raise InputError("the UNet takes no sizes, expected one of SDXL with addition_embed_type 'text_time'")

    def register_to_config(self, **settings: Any) -> None:
        """Change what model_index.json keeps beside the parts."""
        unknown = sorted(set(settings) - set(self._settings))
        if unknown:
            raise Unsupported(f"the config has no {', '.join(unknown)}; it has {', '.join(self._settings)}")
        self._settings.update(settings)

    def encode_prompt(  # pyright: ignore[reportIncompatibleMethodOverride] - diffusers' own signature
        self,
        prompt: Prompt | None,
        prompt_2: Prompt | None = None,
        device: Any = None,
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
            return self._scaled({"scale": lora_scale}).encode_prompt(
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
                    _note("negative_prompt_2 is not used without negative_prompt, which is zeros; give both")
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
        texts = negatives_for(None, negative, count)
        return self._encode_pair(texts, negatives_for(None, second, count) if second else texts, None)

    def _encode_pair(self, texts: list[str], second: list[str], clip_skip: int | None) -> tuple[Tensor, Tensor]:
        """Features of texts for the first encoder and for the second; a single encoder reads the first ones."""
        found = [
            (self.components[name.replace("text_encoder", "tokenizer")], self.components[name])
            for name in ("text_encoder", "text_encoder_2")
            if self.components[name] is not None
        ]
        if not found or any(tokenizer is None for tokenizer, _ in found):
            raise ArgumentError(
                "the pipeline has no text encoder with a tokenizer; give prompt_embeds and pooled_prompt_embeds, and "
                "those of the negative prompt"
            )
        both = [texts, second] if len(found) == 2 else [texts]
        if len(found) == 1 and second != texts:
            _note("prompt_2 is not used: this pipeline has one text encoder, which reads the prompt")
        tokenizers, encoders = zip(*found, strict=True)
        with ExitStack() as held:
            for encoder in encoders:
                held.enter_context(self._runtime.hold(encoder))
            made = encode_pair(tokenizers, encoders, both, clip_skip=0 if clip_skip is None else clip_skip)
        return made.tokens, made.pooled

    def _tell(self, words: Words, guidance: Guidance, sizes: tuple[Sizes, Sizes]) -> tuple[Told, dict[str, Any]]:
        """What the network is told, and the tensors that callbacks may see of that."""
        guided, (row, negative_row) = guidance.scale != 1, (one.row() for one in sizes)
        embeds = self.encode_prompt(
            words.prompt, words.prompt_2, self.device, words.each, guided, words.negative, words.negative_2,
            words.embeds, words.negative_embeds, words.pooled, words.negative_pooled, clip_skip=words.clip_skip,
        )  # fmt: skip
        self._check_vector(row.shape[1], embeds[2].shape[1])
        tokens, negative, pooled, negative_pooled = embeds
        seen = {"prompt_embeds": tokens, "add_text_embeds": pooled, "add_time_ids": row.expand(len(tokens), -1)}
        if negative is not None and negative_pooled is not None:
            others = (negative, negative_pooled, negative_row.expand(len(tokens), -1))
            seen = {name: torch.cat([other, own]) for (name, own), other in zip(seen.items(), others, strict=True)}
        return told_sizes(text_of(embeds), guidance, row, negative_row, self.unet.config.scalar_channels or 0), seen

    def _replaced(self) -> Remake:
        """What callbacks replaced, told to the UNet."""
        channels = self.unet.config.scalar_channels or 0

        def remake(replaced: Mapping[str, Any], x: Tensor, told: Telling) -> tuple[Tensor, Telling]:
            pooled, sizes = replaced.get("add_text_embeds"), replaced.get("add_time_ids")
            if pooled is not None or sizes is not None:
                told = {**told, "vector": vector_replaced(told["vector"], channels, pooled, sizes)}
            return tokens_replaced(replaced, x, told)

        return remake

    def _check_vector(self, numbers: int, pooled: int) -> None:
        """Refuse sizes and scores that the UNet was not made for, with advice (diffusers' is the wrong way round)."""
        config = self.unet.config
        channels, expected = config.scalar_channels or 0, config.vector_channels or 0
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

    def _between(
        self, asked: Listed, strength: float, ends: tuple[float | None, float | None], eta: float
    ) -> Run:  # fmt: skip
        """The steps from a share of the training time, or else the last `strength` of them, to another share."""
        check_strength(strength)
        return between(listed(self.scheduler, asked, eta), *ends, strength)

    def _finish(self, latents: Tensor, output_type: str, return_dict: bool) -> Any:
        images = self._package(latents, output_type)
        return output(images, return_dict, (images,))


class XLImagePipeline(XLPipeline):
    """The base of those that start from pictures: base model or refiner."""

    SETTINGS: ClassVar[tuple[str, ...]] = (*XLPipeline.SETTINGS, "requires_aesthetics_score")
    KIND: ClassVar[str] = "a fitting"

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
        self._hold(given, settings | {"add_watermarker": add_watermarker})


def entering(course: Course) -> float:
    """What turns latents that another pipeline left with noise in them into the first ones of a run."""
    return (float(course.ladder[0]) ** 2 + 1) ** 0.5 if course.preserving else 1.0


def _note(text: str) -> None:
    """Say what a call gave in vain."""
    warnings.warn(text, UserWarning, stacklevel=5)


def _given(value: Pair | None, other: Pair) -> Pair:
    return other if value is None else value
